"""The engine: slots, deadlines and tries of requests to a server that speaks OpenAI's protocol.

The number of slots follows the server's own counts or its refusals, up to `max_concurrency`.

A request has a bounded number of tries under one deadline. Statuses 408, 409, 429 and 5xx and lost connections are
worth another try, after the server's `Retry-After` if there is one (RFC 9110 section 10.2.3). The engine repeats a
request in only one other case: `dialect` learns that the server refuses a parameter that no job set.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.base import (
    NO_IMAGES,
    Completion,
    EngineFailed,
    EngineLoad,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    RequestRejected,
    require_texts,
)
from workers.engines.families import are_read_by
from workers.engines.online.settings import OnlineSettings
from workers.engines.openai_http.answers import TryAgain
from workers.engines.openai_http.follow import follow
from workers.engines.openai_http.limits import ServerLoad
from workers.engines.openai_http.server import OpenAIServer, pauses
from workers.engines.openai_http.settings import OpenAISettings
from workers.engines.openai_http.slots import Slots
from workers.engines.prompts import prompt_room


class HttpServer(Protocol):
    """A server of one model."""

    @property
    def origin(self) -> str:
        """The server's scheme, host and port, for logs and errors."""
        ...

    def open(self) -> None:
        """Make the HTTP session; send no request."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...

    async def window(self) -> int | None:
        """Wait until the server answers for the model, and return the model's window. Raises EngineRefused."""
        ...

    async def post(self, request: GenerationRequest) -> Completion | TryAgain:
        """Send one request once. Raises EngineError."""
        ...


class HttpEngine:
    """Implements `Engine` for one model of a server."""

    def __init__(
        self,
        name: str,
        model: str,
        settings: OpenAISettings | OnlineSettings,
        server: HttpServer,
        metrics: Metrics,
        look: Callable[[], Awaitable[ServerLoad | None]] | None = None,
    ) -> None:
        """`look` fetches the server's own counts; `look` is None for a service without counts."""
        self.name = name
        self.models = (model,)
        self._settings = settings
        self._reads_images = are_read_by(settings.model_family(), model) if settings.images is None else settings.images
        self._server = server
        self._slots = Slots(settings.max_concurrency, metrics.engine_limit.labels(name).inc)
        self._look = look
        self._following: asyncio.Task[None] | None = None
        self._asking: dict[str, asyncio.Task[Completion]] = {}
        self._aborted: set[str] = set()
        self._context_tokens = settings.context_tokens

    @property
    def context_tokens(self) -> int | None:
        """The smaller of the setting `context_tokens` and the model's window in the server's list."""
        return self._context_tokens

    def takes_images(self, model_id: str | None) -> bool:
        """The setting `images` if it is set; otherwise True if the model's family reads images."""
        return self._reads_images

    async def start(self) -> None:
        """Wait until the server answers, check that the server has the worker's model, and read the model's window.

        Raises EngineUnavailable if the server does not answer in time. Raises EngineRefused if the server refuses the
        key, or does not answer a request with the model's name.
        """
        self._server.open()
        try:
            async with asyncio.timeout(self._settings.start_timeout_seconds):
                windows = await self._server.window(), self._settings.context_tokens
        except EngineRefused:
            await self.close()
            raise
        except TimeoutError:
            await self.close()
            raise EngineUnavailable(
                f"no server answered at {self._server.origin} within {self._settings.start_timeout_seconds:g} s; "
                f"POSTBACK_ENGINE__{self.name.upper()}__BASE_URL is the server's address"
            ) from None
        self._context_tokens = min((tokens for tokens in windows if tokens is not None), default=None)
        self._slots.open()
        if self._look is not None:
            self._following = asyncio.create_task(follow(self._look, self._slots), name="engine-look")

    async def generate(self, request: GenerationRequest) -> Completion:
        """Answer one request. Raises EngineError.

        Cancelling the call closes the connection, so that the server stops too.
        """
        if request.adapter is not None:
            raise RequestRejected("adapter", "this engine has no adapters")
        if not self.takes_images(request.model_id):
            require_texts(request, NO_IMAGES)
        if request.pooling is None:
            prompt_room(request, self._context_tokens)  # raises RequestRejected if not even one token fits
        asking = self._asking[request.request_id] = asyncio.create_task(self._asked(request))
        try:
            return await asking
        except asyncio.CancelledError:
            if request.request_id in self._aborted and not _is_cancelled():
                return Completion("", "abort", 0, 0)
            raise
        finally:
            self._asking.pop(request.request_id, None)
            self._aborted.discard(request.request_id)

    async def abort(self, request_id: str) -> None:
        """Close the request's connection. The number of tokens generated so far stays unknown."""
        asking = self._asking.get(request_id)
        if asking is not None:
            self._aborted.add(request_id)
            asking.cancel()

    def load(self) -> EngineLoad:
        """Return how many requests have a place at the server, and how many wait for a place or a slot."""
        places, count = self._slots.places, len(self._asking)
        running = min(count, places)
        return EngineLoad(running=running, waiting=count - running, free=places - running)

    async def close(self) -> None:
        """Abort the requests in flight and close the connections."""
        for request_id in list(self._asking):
            await self.abort(request_id)
        if self._following is not None:
            self._following.cancel()
        self._slots.close()
        await self._server.close()

    async def _asked(self, request: GenerationRequest) -> Completion:
        try:
            async with self._slots.slot():
                return await self._answered(request)
        except TimeoutError:
            seconds = self._settings.request_timeout_seconds
            raise EngineFailed(f"the server did not answer within {seconds:g} s", took_too_long=True) from None

    async def _answered(self, request: GenerationRequest) -> Completion:
        """Send the request, again if needed, within `request_timeout_seconds`. Raises EngineError and TimeoutError."""
        number = self._slots.begin()
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                completion = await self._tried(request)
        except (TimeoutError, EngineFailed) as failed:
            if isinstance(failed, TimeoutError) or failed.took_too_long:
                self._slots.timed_out(number)
            raise
        self._slots.answered()
        return completion

    async def _tried(self, request: GenerationRequest) -> Completion:
        waits = pauses()
        failure = TryAgain("no attempt was made")
        for attempt in range(self._settings.attempts):
            if attempt:
                wait = next(waits)
                await asyncio.sleep(failure.after if failure.after is not None else wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            number = self._slots.begin()
            outcome = await self._server.post(request)
            if isinstance(outcome, Completion):
                return outcome
            if outcome.is_overload:
                self._slots.refused(number)
            failure = outcome
            if failure.after is not None and failure.after > self._settings.request_timeout_seconds:
                break
        raise EngineUnavailable(failure.reason) if failure.is_the_server_s else EngineFailed(failure.reason)


class OpenAIEngine(HttpEngine):
    """The engine of a server that speaks OpenAI's protocol."""

    def __init__(self, settings: OpenAISettings, clock: Clock, metrics: Metrics) -> None:
        if settings.model is None:
            raise ValueError("the openai engine needs the name of the server's model")
        server = OpenAIServer(settings.model, settings, clock)
        super().__init__("openai", settings.model, settings, server, metrics, server.load)


def _is_cancelled() -> bool:
    """True if the caller's own task is being cancelled; an abort cancels only the request's task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
