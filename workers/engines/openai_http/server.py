"""One server of a model, whatever its API: its POSTs, the meaning of its refusals, and the checks at the start.

The operator chooses the server, so the egress guard does not check its address. The meanings of statuses are from
OpenAI's and Gemini's pages on errors, Anthropic's "Errors" and RFC 9110.
"""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from urllib.parse import quote

import aiohttp
from pydantic import AliasChoices, Field, ValidationError

from schemas.bounded import BoundedModel
from telemetry.clock import Clock
from telemetry.logs import get_logger, origin_of
from workers.egress.answers import BodyTooLarge, bounded_body, bounded_pieces, parse_retry_after
from workers.egress.proxy import bounded_connector
from workers.engines.answers import Answer, Usage
from workers.engines.base import (
    Completion,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    RequestRejected,
    first_requests,
)
from workers.engines.body import FIELDS
from workers.engines.openai_http.settings import RemoteSettings
from workers.engines.openai_http.slots import MOST_BYTES, ServerLoad, load_in

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
CONNECT_SECONDS = 10.0
LOOK_TIMEOUT_SECONDS = 5.0
REACH_SECONDS = 4.0
"""Seconds in which a server answers a request for its list of models, however busy it is."""
SPARE_CONNECTIONS = 3
"""Connections beside those of the requests: for the server's counts, a sign of life, and a probe."""
MAX_REASON_CHARACTERS = 300
MAX_RESPONSE_BYTES = 8 * 1024 * 1024
"""Limit on an answer, which may have 131,072 tokens with 20 alternatives each only without most of their text."""
STREAM_FACTOR = 8
"""A stream may have as many times the bytes of a plain answer, since each of its tokens has an envelope."""

_TOO_MANY_OF_ALL: Final = 529
"""Anthropic's status for too many requests of all customers together."""
_OF_THE_SERVER: Final = frozenset((408, 409, 429, 502, 503, _TOO_MANY_OF_ALL))
"""Statuses that concern the whole server rather than the request."""
_AWAY: Final = frozenset((502, 503))
"""Statuses of a server that loads its model or ends, and of a gateway before such a server."""
_OVERLOADED: Final = frozenset((408, 429, 503, _TOO_MANY_OF_ALL))
"""Statuses by which a server asks for fewer requests at the same time."""
_NOT_LET_IN: Final = frozenset((401, 402, 403))
"""Statuses that concern the key or the account. Anthropic uses 402 for a problem with the payment."""
_NO_QUOTA: Final = "insufficient_quota"
"""OpenAI's code in a 429 for an account without credit. Another try would fail too."""
_REFUSED: Final = frozenset((400, 413, 422))
_OF_LENGTH: Final = (
    "maximum context length",  # vLLM and OpenAI
    "exceeds the available context size",  # llama.cpp
    "prompt is too long",  # Anthropic
    "exceed context limit",
    "exceeds the maximum number of tokens",  # Gemini
    "exceeds the context window",  # OpenAI's Responses API
)
_IN_STREAMS: Final = {"overloaded_error": 529, "rate_limit_error": 429, "rate_limit_exceeded": 429}
"""Maps the types and codes of errors in a stream to the status that a plain answer would have; others have 500."""
_EVENTS: Final = "text/event-stream"
DONE: Final = b"[DONE]"
"""The event with which OpenAI's API and its imitators end a stream."""
_TOO_LARGE: Final = "the server's answer is larger than this engine reads"
_OTHER_FORM: Final = "the answer has another form than its API describes"
_LESS: Final = 0.6
"""The fraction of a too long prompt that is tried next, as servers report in too many forms how many tokens fit."""
_NAMED: Final = re.compile(r"(?:^\W*|['`\"])(\w[\w.\[\]]*)(?=['`\"]|:|\ (?:is|must|should)\b)")
_WORD: Final = re.compile(r"\w+")
OF_ACCOUNTS: Final = (
    *("api key", "credit balance", "api usage limits", "billing", "user location"),
    "organization must be verified",
)
"""The `account_texts` of the online services."""
_FIRST: Final = first_requests("first-request", "Hello.", 16, 0.0)

log = get_logger()


class ServerProblem(BoundedModel):
    """The error object of a refusal. All APIs here have its message, and OpenAI's have the parameter too."""

    message: str = ""
    param: str | None = None
    code: str | int | None = None
    type: str | None = None

    @property
    def status(self) -> int:
        """The status of an error in a stream. vLLM and Gemini name it in the code, and others name a word."""
        if isinstance(self.code, int):
            return self.code if 400 <= self.code < 600 else 500
        return _IN_STREAMS.get(self.code or "", _IN_STREAMS.get(self.type or "", 500))


class _Refusal(BoundedModel):
    error: ServerProblem


class _Event(BoundedModel):
    error: ServerProblem | str | None = None


def problem_in(body: bytes) -> ServerProblem:
    """Return the error in a server's refusal; an empty error if the body has no error object."""
    try:
        return _Refusal.model_validate_json(body).error
    except ValidationError:
        return ServerProblem()


@dataclass(frozen=True, slots=True)
class TryAgain:
    """A temporary failure. `after` is the server's `Retry-After` in seconds."""

    reason: str
    after: float | None = None
    is_the_server_s: bool = True
    """True if the failure concerns the whole server; False if the request may be the cause."""
    is_overload: bool = False
    """True if the server has too many requests, so that fewer at once would be answered sooner."""
    is_away: bool = False
    """True if the server is perhaps not there at all: nothing was reached, or a gateway says so."""


class _Bill(BoundedModel):
    usage: Usage | None = Field(default=None, validation_alias=AliasChoices("usage", "usageMetadata"))


class ModelServer(ABC):
    """One server and one of its models. Call `open` before any method that sends a request.

    The defaults are those of OpenAI's API. A subclass for another API overrides what differs: paths, headers and JSON.

    An engine sends some parameters that no job asked for, and some models refuse them: OpenAI's reasoning models take
    neither `max_tokens` nor a temperature. No job is at fault for such a refusal, so the process remembers the refused
    parameters in `refused` and leaves them out from then on.
    """

    kind: ClassVar[str]
    """The engine's name."""
    model_path: str = "models"
    """The path of the model's description, or of a list of models, below `base_url`; `{model}` is the model's name."""
    describes_model: ClassVar[bool] = False
    """True if `model_path` has one model's description instead of a list."""
    stream_options: ClassVar[Mapping[str, Any]] = {"stream": True}
    """The members of a body that ask for a stream."""
    generation_path: str = ""
    """The path for questions, below `base_url`."""
    parameters: ClassVar[Mapping[str, str]] = {}
    """Maps further parameters in the server's errors to the job's fields, beside those of FIELDS."""
    account_texts: ClassVar[Sequence[str]] = ()
    """Texts in a 400 that concern the operator's account: Gemini, for example, answers 400 to a wrong key."""
    reports_load: ClassVar[bool] = False
    """True if the server may count its requests at `/metrics`, as a vLLM server does."""
    firsts: Sequence[GenerationRequest] = _FIRST[:1]
    """The requests of which one shows that the model answers."""

    def __init__(self, settings: RemoteSettings, clock: Clock) -> None:
        self.settings = settings
        self.model = str(settings.model)
        name = quote(self.model.removeprefix("models/"), safe="")
        self.model_path, self.generation_path = (
            path.format(model=name) for path in (self.model_path, self.generation_path)
        )
        self.refused: set[str] = set()
        self.found: set[str] = set()
        """Paths at which the server has answered a request."""
        self.heard: Callable[[], object] = lambda: None
        """Called with each piece of a stream, which is a sign of life."""
        self._fields = {_folded(name): field for name, field in (*_parameters(self.kind), *self.parameters.items())}
        self._variable = f"POSTBACK_ENGINE__{self.kind.upper()}"
        self._clock = clock
        self._base = settings.base_url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    # -- the API -------------------------------------------------------------------------------------------------

    def headers(self, key: str) -> dict[str, str]:
        """Return the headers of each request; `key` is empty if the settings have none."""
        return {"Authorization": f"Bearer {key}"} if key else {}

    def paths(self, request: GenerationRequest) -> Sequence[str]:
        """Return the paths to try one after the other while the server answers 404."""
        return (self.generation_path,)

    @abstractmethod
    def body(self, request: GenerationRequest) -> dict[str, Any]:
        """Return a generation request's JSON. Raises RequestRejected for an option that the server lacks."""

    @abstractmethod
    def read(self, document: bytes, answer: Answer) -> None:
        """Add a plain answer's body, or one event of a stream, to the answer.

        Raises ValueError for a document without the API's form, and EngineError for a failure that it reports.
        """

    def answer(self, request: GenerationRequest) -> Answer:
        """Return an answer of which nothing was read yet."""
        return Answer(request)

    def completion(self, body: bytes, request: GenerationRequest) -> Completion:
        """Return the plain answer to the request. Raises the errors of `read`."""
        answer = self.answer(request)
        self.read(body, answer)
        return answer.completion()

    def window_in(self, body: bytes) -> int | None:
        """Return the model's window, from the answer at `model_path`; None if the answer states no window.

        Raises ValidationError for a body without the API's form, and LookupError with the reason for an unlisted model.
        """
        if self.describes_model:
            return ModelDescription.model_validate_json(body).window
        return _Models.model_validate_json(body).window_of(self.model)

    def streams(self, request: GenerationRequest) -> bool:
        """True if the server is asked for a stream: the request has `on_delta`, and streams were not refused."""
        return request.on_delta is not None and request.pooling is None and "stream" not in self.refused

    def missing(self, request: GenerationRequest, path: str) -> RequestRejected | None:
        """Return the error of a request whose kind needs the missing path; None if the settings chose the path."""
        return None

    def learns(self, request: GenerationRequest, sent: Mapping[str, Any], problem: ServerProblem) -> bool:
        """Remember a refused parameter that no job set.

        Return True if the request may be sent again without the parameter.
        """
        name = "logprobs" if problem.param == "top_logprobs" else (problem.param or "").partition(".")[0] or None
        if name is None:
            said = problem.message.lower()
            name = next((each for each in ("temperature", "stream_options") if each in said), None)
        if name is None or not (name in sent or name in sent.get("generationConfig", ())):
            return False
        # with another code, the job's own `max_tokens` is at fault
        is_ours = name in self._ours(request) or (name == "max_tokens" and problem.code == "unsupported_parameter")
        if is_ours and name not in self.refused:
            log.warning(
                "The server does not take a parameter; leaving it out from now on.",
                action="engine-parameter-refused",
                parameter=name,
            )
            self.refused.add(name)
        return is_ours

    def _ours(self, request: GenerationRequest) -> set[str]:
        """Return the parameters that no job set in this request."""
        without_job = {"logprobs": request.top_logprobs is None, "temperature": request.temperature_is_default}
        return {*self.stream_options, *(name for name, is_ours in without_job.items() if is_ours)}

    def _sent(self, request: GenerationRequest) -> dict[str, Any]:
        """Return the JSON to send: the body, the wish for a stream, and none of the parameters that were refused."""
        body = {**self.body(request), **(self.stream_options if self.streams(request) else {})}
        left_out = self.refused & self._ours(request)
        sent = {name: value for name, value in body.items() if name not in left_out}
        if (options := sent.get("generationConfig")) is not None:
            sent["generationConfig"] = {name: value for name, value in options.items() if name not in left_out}
        return sent

    # -- requests ------------------------------------------------------------------------------------------------

    @property
    def origin(self) -> str:
        """The server's scheme, host and port, for logs and errors."""
        return origin_of(self._base)

    def open(self) -> None:
        """Make the HTTP session; send no request."""
        key = self.settings.api_key
        headers = self.headers(key.get_secret_value() if key is not None else "")
        self._session = new_session(headers, self.settings.max_concurrency + SPARE_CONNECTIONS)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def post(self, request: GenerationRequest) -> Completion | TryAgain:
        """POST the request, and POST it again after each refused parameter that no job set. Raises EngineError."""
        path, *others = self.paths(request)
        try:
            while True:
                sent = self._sent(request)
                async with self._http.post(self._url(path), json=sent, allow_redirects=False) as response:
                    is_stream = response.status == 200 and response.content_type == _EVENTS
                    read = await (self._streamed(response, request) if is_stream else self._read(response))
                if isinstance(read, Completion):
                    self.found.add(path)
                    return read
                status, body = read
                if status == 404 and others and problem_in(body).param != "model":
                    path, *others = others
                    continue
                if status == 200:
                    self.found.add(path)
                if status not in (400, 422) or not self.learns(request, sent, problem_in(body)):
                    return self.outcome(request, path, status, response.headers, body)
        except aiohttp.ClientError as error:
            return TryAgain(f"the server was not reached: {type(error).__name__}", is_away=True)

    async def reach(self) -> str | None:
        """Return the reason why nothing answers; None if the server gives any answer to a request for its models."""
        url = f"{self._base}/{self.model_path}"
        try:
            async with asyncio.timeout(REACH_SECONDS), self._http.get(url, allow_redirects=False):
                return None
        except TimeoutError:
            return "no answer to a request for its models"
        except aiohttp.ClientError as error:
            return type(error).__name__

    async def load(self) -> ServerLoad | None:
        """Return the counts that a vLLM server reports at `/metrics` beside the `/v1`; None if it reports no counts."""
        try:
            async with (
                asyncio.timeout(LOOK_TIMEOUT_SECONDS),
                self._http.get(self._url("../metrics"), allow_redirects=False) as response,
            ):
                return load_in(await bounded_body(response, MOST_BYTES)) if response.status == 200 else None
        except (aiohttp.ClientError, BodyTooLarge, TimeoutError):
            return None

    async def window(self) -> int | None:
        """Wait until the server answers for the worker's model, and return the tokens of its window, None if unknown.

        Raises EngineRefused if the server refuses the worker's key, or does not have the model.
        """
        waits = pauses()
        while True:
            try:
                return await self._window()
            except EngineUnavailable as away:
                error = str(away)
            except aiohttp.ClientError as failed:
                error = type(failed).__name__
            log.info("The engine's server does not answer yet; trying again.", action="engine-wait", error=error)
            await asyncio.sleep(next(waits))

    async def _window(self) -> int | None:
        """Ask the server once. Raises EngineRefused, and EngineUnavailable or a ClientError while the server starts."""
        path = self.model_path
        try:
            async with self._http.get(f"{self._base}/{path}", allow_redirects=False) as response:
                status, body = await self._read(response)
            if status in _OF_THE_SERVER or status == 504:
                raise EngineUnavailable(f"the server answered {status}")
            # OpenAI's restricted keys may generate, but get a 403 for the list.
            if status != 403 and self._is_of_the_account(status, problem_in(body)):
                key = f"{self._variable}__API_KEY"
                mend = key if self.settings.api_key is None else f"{key} to a key that the server takes"
                raise EngineRefused(f"the server at {self.origin} refuses to list its models ({status}): set {mend}")
            if status == 200:
                return self.window_in(body)
            lack = f"answered {status} to {path}"
        except RequestRejected:
            lack = f"answered {path} with more than {MAX_RESPONSE_BYTES} bytes"
        except ValidationError:
            lack = f"answered {path} in another form than its API describes"
        except LookupError as unlisted:
            lack = str(unlisted)
        await self._try_out(lack)
        return None

    async def _try_out(self, lack: str) -> None:
        """Send first requests until one is answered, if no list names the model: the server may still take the name.

        A llama.cpp server takes any name, Ollama takes shorter names than it lists, and some servers have no list.
        Raises EngineRefused, with `lack` in its text, or EngineUnavailable while the server is starting.
        """
        refusals = []
        for request in self.firsts:
            try:
                tried = await self.post(request)
            except (EngineUnavailable, RequestRejected) as error:
                if isinstance(error, EngineFailed) and error.took_too_long:
                    raise
                refusals.append(str(error))
                continue
            if isinstance(tried, TryAgain):
                raise EngineUnavailable(tried.reason)
            log.warning(
                "The server does not list the model but answers requests with the model's name; going on.",
                action="engine-model-unlisted",
                model=self.model,
            )
            return
        raise EngineRefused(
            f"the server at {self.origin} {lack}, and a first request failed ({refusals[0]}): {self._mend()}"
        )

    def outcome(
        self, request: GenerationRequest, path: str, status: int, headers: Mapping[str, str], body: bytes
    ) -> Completion | TryAgain:
        """Return the outcome of a request, from the response to its POST to `path`. Raises EngineError."""
        problem = problem_in(body) if status != 200 else ServerProblem()
        if status == 504:
            raise EngineFailed(
                "the server answered 504: the request took longer than a gateway waits", took_too_long=True
            )
        if self._is_of_the_account(status, problem):
            raise EngineUnavailable(f"the server refuses {self._variable}__API_KEY ({status})")
        if status in _OF_THE_SERVER or status >= 500:
            after = parse_retry_after(headers.get("Retry-After", ""), self._clock.time())
            is_of_the_server, is_overload = status in _OF_THE_SERVER, status in _OVERLOADED
            return TryAgain(f"the server answered {status}", after, is_of_the_server, is_overload, status in _AWAY)
        if status == 404 and problem.param != "model" and (missing := self.missing(request, path)) is not None:
            raise missing
        # Path and model come from the settings, so no job is at fault.
        if status == 404 or (status in _REFUSED and problem.param == "model"):
            raise EngineUnavailable(f"the server answered {status} to {path}: {self._mend()}")
        if status in _REFUSED:
            raise self._refusal(request, status, problem)
        if status != 200:
            raise EngineUnavailable(f"the server answered {status}")
        try:
            return self.completion(body, request)
        except ValueError:
            tokens = _billed(body)
            raise EngineFailed(_OTHER_FORM, wasted_tokens=tokens) from None

    def _refusal(
        self, request: GenerationRequest, status: int, problem: ServerProblem
    ) -> RequestRejected | PromptTooLong:
        """Return the server's refusal as an error with the job's field and the server's own text."""
        if request.is_whole and status in (400, 413) and any(words in problem.message for words in _OF_LENGTH):
            return PromptTooLong(_LESS)
        reason = " ".join(problem.message.split())[:MAX_REASON_CHARACTERS]
        return RequestRejected(
            _blamed(problem, self._fields) or question_of(request), reason or f"it answered {status}"
        )

    def _is_of_the_account(self, status: int, problem: ServerProblem) -> bool:
        """True if the server refuses the key or the account; the request is not at fault."""
        is_said = status == 400 and any(words in problem.message.lower() for words in self.account_texts)
        return is_said or status in _NOT_LET_IN or problem.code == _NO_QUOTA

    def _mend(self) -> str:
        return (
            f"{self._variable}__BASE_URL must end where its API begins, mostly in its version such as /v1, --model or "
            f"{self._variable}__MODEL must name one of its models, and {self._variable}__API_KEY must be a key that "
            "may use it"
        )

    def _url(self, path: str) -> str:
        """Return the URL of a path below the server's URL.

        A path that begins with `../` lies beside the `/v1` of the URL.
        """
        beside = path.removeprefix("../")
        return f"{self._base}/{path}" if beside == path else f"{self._base.removesuffix('/v1')}/{beside}"

    async def _read(self, response: aiohttp.ClientResponse) -> tuple[int, bytes]:
        """Return the status and the body. Raises RequestRejected for more bytes than an answer may have."""
        try:
            return response.status, await bounded_body(response, MAX_RESPONSE_BYTES)
        except BodyTooLarge:
            raise RequestRejected("max_tokens", _TOO_LARGE) from None

    async def _streamed(
        self, response: aiohttp.ClientResponse, request: GenerationRequest
    ) -> Completion | tuple[int, bytes]:
        """Read a stream, and call `on_delta` while its text grows. Return the completion.

        If the server reports an error in the stream, return the error's status and body. Raises EngineError, and a
        ClientError for a lost end.
        """
        answer, cutter, told = self.answer(request), EventCutter(), 0
        try:
            async for piece in bounded_pieces(response, STREAM_FACTOR * MAX_RESPONSE_BYTES):
                self.heard()
                for event in cutter.events(piece):
                    if b'"error"' in event and (problem := _Event.model_validate_json(event).error):
                        return (problem.status if isinstance(problem, ServerProblem) else 500), event
                    self.read(event, answer)
                if max(answer.size, cutter.pending) > MAX_RESPONSE_BYTES:
                    raise BodyTooLarge
                if request.on_delta is not None and (gained := answer.grown()):
                    request.on_delta(gained, told)
                    told += len(gained)
            if not answer.is_whole:
                raise aiohttp.ClientPayloadError("the stream ended before its answer")
            return answer.completion()
        except BodyTooLarge:
            raise RequestRejected("max_tokens", _TOO_LARGE) from None
        except ValueError:
            raise EngineFailed(_OTHER_FORM, wasted_tokens=answer.usage.generated) from None

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineUnavailable("the engine is not started")
        return self._session


def _billed(body: bytes) -> int:
    """Return the number of generated tokens in an otherwise unreadable answer; 0 if it is unknown."""
    try:
        usage = _Bill.model_validate_json(body).usage
    except ValidationError:
        return 0
    return usage.generated if usage is not None else 0


def _blamed(problem: ServerProblem, fields: Mapping[str, str]) -> str | None:
    """Return the job's field for the parameter that a refusal names; None if the refusal names no known parameter.

    Some servers give a path (`tools[0].function.name`), and others name the parameter only at the start of their text
    (`max_tokens: 9 > 8`) or in quotation marks.
    """
    paths = [problem.param] if problem.param else _NAMED.findall(problem.message[:MAX_REASON_CHARACTERS])
    names = (name for path in paths for name in _WORD.findall(path))
    return next((fields[folded] for folded in map(_folded, names) if folded in fields), None)


def _parameters(kind: str) -> Iterator[tuple[str, str]]:
    """Yield the parameters of an engine kind that jobs set, each with the job's field."""
    for member in FIELDS.values():
        if kind in member.names:
            yield member.names[kind].rpartition(".")[2], member.field


def _folded(name: str) -> str:
    """Return a parameter's name in one spelling; Gemini's errors have `topP` and `top_p`."""
    return name.replace("_", "").lower()


def question_of(request: GenerationRequest) -> str:
    """Return the name of the job's field that has the question or the texts."""
    if request.pooling is not None:
        return request.pooling.kind.field
    return request.asked_in


def new_session(headers: Mapping[str, str], most_connections: int) -> aiohttp.ClientSession:
    """Return a session without a timeout, since each request has its own.

    A connection is closed at a certain age, and if an answer comes without a request: see `workers.egress.answers`. The
    environment's proxies are ignored. Cookies are ignored too, because a server could send new ones for ever, and each
    would be kept.
    """
    return aiohttp.ClientSession(
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        connector=bounded_connector(limit=most_connections),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
    )


def pauses() -> Iterator[float]:
    """Yield the seconds to wait before each further try, doubling up to the longest wait."""
    wait = FIRST_WAIT_SECONDS
    while True:
        yield wait
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


# -- The server's list of models: their names and windows --
_MOST_MODELS: Final = 10_000
_NAMES_SHOWN: Final = 8


class ModelDescription(BoundedModel):
    """The fields of a model's description that this engine reads."""

    id: str = Field(validation_alias=AliasChoices("id", "name"))
    parent: str | None = None
    """The base model of a LoRA adapter; only the base model has a window."""
    most_tokens: int | None = Field(
        default=None, validation_alias=AliasChoices("max_model_len", "max_input_tokens", "inputTokenLimit")
    )
    """Tokens of prompt and answer together, or Anthropic's and Gemini's limit on the prompt.

    A vLLM server has this field; OpenAI's protocol does not.
    """
    output_tokens: int | None = Field(default=None, validation_alias="outputTokenLimit")
    """Gemini's limit on the answer."""

    @property
    def window(self) -> int | None:
        """The tokens of prompt and answer together; None if unknown.

        A number below 1 is ignored, because a worker with such a window would reject every job.
        """
        most = self.most_tokens or 0
        return most + max(self.output_tokens or 0, 0) if most > 0 else None


class _Models(BoundedModel):
    """The answer to `GET /models`. vLLM's servers list LoRA adapters as models too."""

    data: list[ModelDescription] = Field(max_length=_MOST_MODELS)

    def window_of(self, name: str) -> int | None:
        """Return the tokens of this model's window, or of its base model's window; None if unknown.

        Raises LookupError, with a text for the operator that begins the list, for an unlisted model.
        """
        by_name = {model.id: model for model in self.data}
        model = by_name.get(name)
        if model is None:
            names, more = [each.id for each in self.data[:_NAMES_SHOWN]], len(self.data) - _NAMES_SHOWN
            shown = ", ".join(names) + (f" and {more} more" if more > 0 else "") if names else "none at all"
            raise LookupError(f"does not list the model {name}, but {shown}")
        if model.most_tokens is None and model.parent is not None:
            model = by_name.get(model.parent)
        return model.window if model is not None else None


# -- Server-sent events (WHATWG HTML, section 9.2) --
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


class EventCutter:
    """Cuts a stream into the data of its events, wherever the pieces of the stream begin and end."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        """The pieces of the line that has no end yet."""
        self._data: list[bytes] = []
        """The lines of the event that has no end yet."""
        self._is_after_cr = False
        self.pending = 0
        """The number of bytes since the last piece in which an event ended."""

    def events(self, piece: bytes) -> Iterator[bytes]:
        """Take the next piece, and yield the data of each event that ends in it, without comments and other fields."""
        if self._is_after_cr:  # the line has ended there already, and CRLF is one end
            piece = piece.removeprefix(b"\n")
        self._is_after_cr = piece.endswith(b"\r")
        first, *others = _LINE_END.split(piece)
        self._line.append(first)
        self.pending += len(piece)
        for line in others:
            yield from self._ended(b"".join(self._line))
            self._line = [line]

    def _ended(self, line: bytes) -> Iterator[bytes]:
        if line.startswith(b"data:"):
            self._data.append(line[len(b"data:") :].removeprefix(b" "))
        elif not line and self._data:
            yield b"\n".join(self._data)
            self._data, self.pending = [], 0
