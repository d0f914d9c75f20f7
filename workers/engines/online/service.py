"""Sends POSTs to an online service, maps the service's errors to outcomes, and checks key and model at the start.

The meanings of statuses are from the services' pages: Anthropic's "Errors", Gemini's "Troubleshooting guide" and
OpenAI's "Error codes".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, Protocol

import aiohttp
from pydantic import ValidationError

from telemetry.clock import Clock
from telemetry.logs import get_logger, origin_of
from workers.egress.retry_after import parse_retry_after
from workers.engines.base import (
    Completion,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    RequestRejected,
)
from workers.engines.first_requests import first_requests
from workers.engines.online.settings import OnlineSettings
from workers.engines.openai_http.answers import MAX_REASON_CHARACTERS, OVERLOADED, TryAgain
from workers.engines.openai_http.dialect import ServerProblem, problem_in
from workers.engines.openai_http.server import answer_body, first_refusal, new_session, once_answered

_TOO_MANY_OF_ALL: Final = 529
"""Anthropic's status for too many requests of all customers together."""
_OF_THE_SERVICE: Final = frozenset((408, 409, 429, 502, 503, _TOO_MANY_OF_ALL))
"""Statuses that concern the whole service."""
_NOT_LET_IN: Final = frozenset((401, 402, 403))
"""Statuses that concern the key or the account. Anthropic uses 402 for a problem with the payment."""
_OF_THE_ACCOUNT: Final = (
    "api key",
    "credit balance",
    "api usage limits",
    "billing",
    "user location",
    "organization must be verified",
)
"""Texts in a 400 that concern the operator's account: Gemini, for example, answers 400 to a wrong key."""
_NO_QUOTA: Final = "insufficient_quota"
"""OpenAI's code in a 429 for an account without credit. Another try would fail too."""
_OF_LENGTH: Final = (
    "prompt is too long",
    "exceeds the maximum number of tokens",
    "exceed context limit",
    "exceeds the context window",
)
_LESS: Final = 0.6
"""The fraction of a too long prompt that is tried next.

The services state the fitting length in too many forms to parse.
"""

_FIRST: Final = first_requests("first-request", "Hello.", 16, 0.0)[:1]
"""The first request is only a question, because these services do not embed, score, rank or classify texts."""

log = get_logger()


class Api(Protocol):
    """One service's paths and JSON."""

    @property
    def generation_path(self) -> str:
        """The path of generation requests, below `base_url`."""
        ...

    @property
    def model_path(self) -> str:
        """The path of the model's description, or of a list of models, below `base_url`."""
        ...

    @property
    def fields(self) -> Mapping[str, str]:
        """Maps the parameters in the service's errors to the job's fields; empty if the errors name no parameters."""
        ...

    def headers(self, key: str) -> dict[str, str]:
        """Return the headers of each request."""
        ...

    def body(self, request: GenerationRequest, *, with_temperature: bool) -> dict[str, Any]:
        """Return a generation request's JSON. Raises RequestRejected for an option that the service lacks."""
        ...

    def completion(self, body: bytes, request: GenerationRequest) -> Completion:
        """Return the answer to the request.

        Raises ValueError for a body without the API's form, and EngineError for an answer that reports a failure.
        """
        ...

    def window(self, body: bytes) -> int | None:
        """Return the model's window, from the answer at `model_path`; None if the answer states no window.

        Raises ValidationError for a body without the API's form, and LookupError with the reason for an unlisted model.
        """
        ...


class OnlineService:
    """One service and one of its models. Call `open` before any other method."""

    def __init__(self, engine: str, model: str, settings: OnlineSettings, api: Api, clock: Clock) -> None:
        self._variable = f"POSTBACK_ENGINE__{engine.upper()}"
        self._model = model
        self._settings = settings
        self._api = api
        self._clock = clock
        self._base = settings.base_url.rstrip("/")
        self._takes_temperature = True
        self._session: aiohttp.ClientSession | None = None

    @property
    def origin(self) -> str:
        """The service's scheme, host and port, for logs and errors."""
        return origin_of(self._base)

    def open(self) -> None:
        """Make the HTTP session; send no request."""
        key = self._settings.api_key
        headers = self._api.headers(key.get_secret_value() if key is not None else "")
        self._session = new_session(headers, self._settings.max_concurrency)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def post(self, request: GenerationRequest) -> Completion | TryAgain:
        """POST the request; POST again without a temperature if the service takes none. Raises EngineError."""
        try:
            while True:
                sent = self._api.body(request, with_temperature=self._sends_temperature(request))
                url = f"{self._base}/{self._api.generation_path}"
                async with self._http.post(url, json=sent, allow_redirects=False) as response:
                    body = await self._read(response)
                if response.status != 400 or not self._learns(request, problem_in(body).message):
                    return self._outcome(request, response, body)
        except aiohttp.ClientError as error:
            return TryAgain(f"the service was not reached: {type(error).__name__}")

    async def window(self) -> int | None:
        """Wait until the service describes the worker's model, or answers a first request for it.

        Return the tokens of the model's window, None if unknown. Raises EngineRefused if the service refuses the
        worker's key or does not have the model.
        """
        return await once_answered(self._window)

    async def _window(self) -> int | None:
        """Ask the service once, and return the model's window. Raises EngineRefused.

        Raises EngineUnavailable or a ClientError if the service is away.
        """
        path = self._api.model_path
        try:
            async with self._http.get(f"{self._base}/{path}", allow_redirects=False) as response:
                body, status = await self._read(response), response.status
            if status in _OF_THE_SERVICE or status == 504:
                raise EngineUnavailable(str(status))
            if status != 403 and _is_of_the_account(status, problem_in(body)):
                where = f"set {self._where} to a key that it takes"
                raise EngineRefused(f"{self.origin} refuses the key ({status}): {where}")
            if status == 200:
                return self._api.window(body)
            lack = f"answered {status} to {path}"
        except RequestRejected:
            lack = f"answered {path} with more than the {self._settings.max_response_bytes} bytes of max_response_bytes"
        except ValidationError:
            lack = f"answered {path} in another form than its API describes"
        except LookupError as unlisted:
            lack = str(unlisted)
        await self._try_out(lack)
        return None

    async def _try_out(self, lack: str) -> None:
        """Send a first request if the service does not describe the model.

        Servers of other vendors with the same API do not describe their models. A restricted key may be allowed to
        generate, while a request for the description ends with 403. Raises EngineRefused, with `lack` in its text, if
        the first request fails, or EngineUnavailable while the service is starting.
        """
        refusal = await first_refusal(self._model, _FIRST, self.post)
        if refusal is not None:
            raise EngineRefused(
                f"{self.origin} {lack}, and a first request failed ({refusal}): {self._variable}__BASE_URL must end "
                "with the version of the API, --model (`model` in the registry) must name one of its models, and "
                f"{self._where} must be a key that may use it"
            )

    # -- outcomes ------------------------------------------------------------------------------------------------

    def _outcome(
        self, request: GenerationRequest, response: aiohttp.ClientResponse, body: bytes
    ) -> Completion | TryAgain:
        status = response.status
        problem = problem_in(body) if status != 200 else ServerProblem()
        if status == 504:
            raise EngineFailed("the service answered 504: the request took too long", took_too_long=True)
        if _is_of_the_account(status, problem):
            raise EngineUnavailable(f"the service refuses {self._where} ({status})")
        if status in _OF_THE_SERVICE or status >= 500:
            after = parse_retry_after(response.headers.get("Retry-After", ""), self._clock.time())
            is_overload = status in OVERLOADED or status == _TOO_MANY_OF_ALL
            return TryAgain(f"the service answered {status}", after, status in _OF_THE_SERVICE, is_overload)
        if status in (400, 413, 422) and problem.param != "model":
            raise _refusal(request, status, problem, self._api.fields)
        if status != 200:
            raise EngineUnavailable(f"the service answered {status}: check the model's name and {self._where}")
        try:
            return self._api.completion(body, request)
        except ValueError:
            raise EngineFailed("the service's answer has another form than its API describes") from None

    @property
    def _where(self) -> str:
        return f"{self._variable}__API_KEY (`api_key` in the registry)"

    def _sends_temperature(self, request: GenerationRequest) -> bool:
        return self._takes_temperature or not request.temperature_is_default

    def _learns(self, request: GenerationRequest, message: str) -> bool:
        """Remember that the model takes no temperature.

        Return True if the request may be sent again without a temperature.
        """
        if "temperature" not in message.lower() or not self._takes_temperature or not request.temperature_is_default:
            return False
        self._takes_temperature = False
        log.warning(
            "The server does not take a parameter; leaving it out from now on.",
            action="engine-parameter-refused",
            parameter="temperature",
        )
        return True

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        return await answer_body(response, self._settings.max_response_bytes)

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineUnavailable("the engine is not started")
        return self._session


def _is_of_the_account(status: int, problem: ServerProblem) -> bool:
    """True if the service refuses the key or the account; the request is not at fault."""
    is_said = status == 400 and any(words in problem.message.lower() for words in _OF_THE_ACCOUNT)
    return is_said or status in _NOT_LET_IN or problem.code == _NO_QUOTA


def _refusal(
    request: GenerationRequest, status: int, problem: ServerProblem, fields: Mapping[str, str]
) -> RequestRejected | PromptTooLong:
    """Return the service's refusal as an error with the job's field and the service's own text."""
    if request.is_whole and any(words in problem.message for words in _OF_LENGTH):
        return PromptTooLong(_LESS)
    question = "messages" if request.messages is not None else "prompt"
    parameter = re.split(r"[.\[]", problem.param or "", maxsplit=1)[0]  # for example `text` of `text.format.schema`
    reason = " ".join(problem.message.split())[:MAX_REASON_CHARACTERS]
    return RequestRejected(fields.get(parameter, question), reason or f"the service answered {status}")
