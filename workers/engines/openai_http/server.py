"""Sends POSTs to the server, and checks the key, the model and the window at the start.

The operator chooses the server, so the egress guard does not check its address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

import aiohttp
from pydantic import ValidationError

from telemetry.clock import Clock
from telemetry.logs import get_logger, origin_of
from workers.egress.answers import BodyTooLarge, bounded_body
from workers.egress.proxy import bounded_connector
from workers.engines.base import (
    Completion,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    RequestRejected,
)
from workers.engines.first_requests import first_requests
from workers.engines.openai_http.answers import TryAgain, outcome
from workers.engines.openai_http.dialect import Dialect, problem_in
from workers.engines.openai_http.figures import MOST_BYTES, load_in
from workers.engines.openai_http.limits import ServerLoad
from workers.engines.openai_http.models import ServerModels
from workers.engines.openai_http.settings import OpenAISettings

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
CONNECT_SECONDS = 10.0
LOOK_TIMEOUT_SECONDS = 5.0
_COMING_UP = {502, 503, 504}
"""Statuses of a server that still loads its model, and of a gateway in front of such a server."""
_FIRST = first_requests("first-request", "Hello.", 16, 0.0)

Post = Callable[[GenerationRequest], Awaitable[Completion | TryAgain]]
"""Sends one request once. Raises EngineError."""

log = get_logger()


class OpenAIServer:
    """One server and one of its models. Call `open` before any other method."""

    def __init__(self, model: str, settings: OpenAISettings, clock: Clock) -> None:
        self._model = model
        self._settings = settings
        self._clock = clock
        self._dialect = Dialect(model, settings)
        self._base = settings.base_url.rstrip("/")
        family = settings.model_family()
        self._marks = family.reasoning if family is not None else None
        self._session: aiohttp.ClientSession | None = None

    @property
    def origin(self) -> str:
        """The server's scheme, host and port, for logs and errors."""
        return origin_of(self._base)

    def open(self) -> None:
        """Make the HTTP session; send no request."""
        key = self._settings.api_key
        headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
        # Allow one connection more than requests, so that reading the server's counts does not wait behind requests.
        self._session = new_session(headers, self._settings.max_concurrency + 1)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def post(self, request: GenerationRequest) -> Completion | TryAgain:
        """POST the request, and POST it again after each refused parameter that no job set. Raises EngineError."""
        (path, *others), is_usual = self._dialect.paths(request), self._dialect.is_usual(request)
        try:
            while True:
                sent = self._dialect.body(request)
                async with self._http.post(self._url(path), json=sent, allow_redirects=False) as response:
                    body = await self._read(response)
                if response.status == 404 and others and problem_in(body).param != "model":
                    path, *others = others
                    continue
                if response.status == 200:
                    self._dialect.found(path)
                if response.status != 400 or not self._dialect.learns(request, sent, problem_in(body)):
                    now = self._clock.time()
                    return outcome(
                        request,
                        path,
                        response.status,
                        response.headers,
                        body,
                        now,
                        is_usual=is_usual,
                        marks=self._marks,
                    )
        except aiohttp.ClientError as error:
            return TryAgain(f"the server was not reached: {type(error).__name__}")

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

    def _url(self, path: str) -> str:
        """Return the URL of a path below the server's URL.

        A path that begins with `../` lies beside the `/v1` of the URL.
        """
        beside = path.removeprefix("../")
        return f"{self._base}/{path}" if beside == path else f"{self._base.removesuffix('/v1')}/{beside}"

    async def window(self) -> int | None:
        """Wait until the server answers for the worker's model.

        Return the tokens of the model's window; None if the server lists no window. Raises EngineRefused if the server
        refuses the worker's key, or fails a first request with the model's name.
        """
        return await once_answered(self._window)

    async def _window(self) -> int | None:
        """Ask the server once, and return the model's window. Raises EngineRefused.

        Raises EngineUnavailable or a ClientError while the server starts.
        """
        async with self._http.get(f"{self._base}/models", allow_redirects=False) as response:
            if response.status == 401:
                raise self._refused()
            if response.status in _COMING_UP:
                raise EngineUnavailable(f"the server answered {response.status}")
            models = await self._listed(response)
        if models is None or self._model not in models.names:
            await self._try_out(models, response.status)
        return models.window_of(self._model) if models is not None else None

    def _refused(self) -> EngineRefused:
        """Return the error for a refused or missing key."""
        variable = "POSTBACK_ENGINE__OPENAI__API_KEY"
        mend = f"set {variable}" if self._settings.api_key is None else f"set {variable} to a key that the server takes"
        return EngineRefused(f"the server at {self.origin} refuses to list its models (401): {mend}")

    async def _listed(self, response: aiohttp.ClientResponse) -> ServerModels | None:
        """Return the server's models; None if the list is missing or unreadable."""
        try:
            return ServerModels.model_validate_json(await self._read(response)) if response.status == 200 else None
        except (ValidationError, RequestRejected):
            return None

    async def _try_out(self, models: ServerModels | None, status: int) -> None:
        """Send a first request if no list names the worker's model: the server may still take the name.

        A reranker does not answer questions, so texts to embed, score, rank and classify are tried too. A llama.cpp
        server takes any name, Ollama takes shorter names than it lists, and some servers have no list. OpenAI's
        restricted keys may generate, but get a 403 for the list. Raises EngineRefused, or EngineUnavailable while the
        server is starting.
        """
        refusal = await first_refusal(self._model, _FIRST, self.post)
        if refusal is not None:
            said = models.lacks(self._model) if models is not None else f"gave no list of models ({status})"
            raise EngineRefused(f"the server at {self.origin} {said}, and a first request failed: {refusal}")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        return await answer_body(response, self._settings.max_response_bytes)

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineUnavailable("the engine is not started")
        return self._session


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


async def first_refusal(model: str, requests: Sequence[GenerationRequest], post: Post) -> str | None:
    """POST first requests for an unlisted model until one is answered.

    Return None after an answer, otherwise the reason why the server refuses the first request. Raises
    EngineUnavailable while the server is starting.
    """
    refusals = []
    for request in requests:
        refusal = await _refusal_of(request, post)
        if refusal is None:
            log.warning(
                "The server does not list the model but answers requests with the model's name; going on.",
                action="engine-model-unlisted",
                model=model,
            )
            return None
        refusals.append(refusal)
    return refusals[0]


async def _refusal_of(request: GenerationRequest, post: Post) -> str | None:
    """Return the reason why the server refuses a request; None for an answer. Raises EngineUnavailable."""
    try:
        tried = await post(request)
    except (EngineUnavailable, RequestRejected) as error:
        if isinstance(error, EngineFailed) and error.took_too_long:
            raise
        return str(error)
    if isinstance(tried, TryAgain):
        raise EngineUnavailable(tried.reason)
    return None


async def once_answered(ask: Callable[[], Awaitable[int | None]]) -> int | None:
    """Return the answer of `ask`, which is called again while it raises EngineUnavailable or a ClientError."""
    waits = pauses()
    while True:
        try:
            return await ask()
        except EngineUnavailable as away:
            error = str(away)
        except aiohttp.ClientError as failed:
            error = type(failed).__name__
        log.info("The engine's server does not answer yet; trying again.", action="engine-wait", error=error)
        await asyncio.sleep(next(waits))


def pauses() -> Iterator[float]:
    """Yield the seconds to wait before each further try, doubling up to the longest wait."""
    wait = FIRST_WAIT_SECONDS
    while True:
        yield wait
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


async def answer_body(response: aiohttp.ClientResponse, most_bytes: int) -> bytes:
    """Return the body. Raises RequestRejected for more than `most_bytes`, counted after decompression."""
    try:
        return await bounded_body(response, most_bytes)
    except BodyTooLarge:
        raise RequestRejected("max_tokens", "the server's answer is larger than this engine reads") from None
