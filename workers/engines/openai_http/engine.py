"""The engine: slots, deadlines and tries of requests to a server that speaks OpenAI's protocol.

The number of slots follows the server's own counts or its refusals, up to `max_concurrency`.

A request has a bounded number of tries under one deadline. Statuses that concern the whole server (408, 409, 429, 502,
503) and lost connections are worth another try, after the server's `Retry-After` if there is one (RFC 9110 section
10.2.3). The engine repeats a request in only one other case: `dialect` learns that the server refuses a parameter that
no job set.

A watch tells two kinds of absence. A server that fails requests in a row gets no more requests, but a small one every
few seconds until it answers. A server that is silent while requests wait for it is asked for its models: a long answer
sends no byte before its end, unless it is a stream, but a server that works answers this question at once. If it does
not, the engine is away; if it does not a second time, the requests in flight are cut, and their jobs wait for the
server's return.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.engines.address import PROBE_SECONDS, AddressEngine
from workers.engines.base import (
    NO_IMAGES,
    Completion,
    EngineError,
    EngineFailed,
    EngineLoad,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    RequestRejected,
    prompt_room,
    require_texts,
    small_request,
)
from workers.engines.families import are_read_by
from workers.engines.openai_http.server import ModelServer, TryAgain, pauses
from workers.engines.openai_http.slots import Slots, follow

WATCH_SECONDS = 2.0
"""Pause between two looks at a silent server, or at one that is away."""
FAILURES = 5
"""Failures in a row after which a server gets no more requests until it answers a small one.

A server with many requests in flight refuses some of them, and answers others in between.
"""

log = get_logger()


@dataclass(eq=False, slots=True)
class _Asked:
    """A request in flight."""

    answering: asyncio.Task[Completion]
    began: float
    cut: str | None = None
    """The reason why the engine gave up waiting for the server's answer."""


class HttpEngine(AddressEngine):
    """The engine of one model of a server."""

    def __init__(self, server: ModelServer, metrics: Metrics) -> None:
        super().__init__()
        self.name, self.models = server.kind, (server.model,)
        settings = self._settings = server.settings
        family = settings.model_family()
        self._reads_images = are_read_by(family, server.model) if settings.images is None else settings.images
        self._server = server
        server.heard = self._note_life
        self._slots = Slots(settings.max_concurrency, metrics.engine_limit.labels(self.name).inc)
        self._beside: list[asyncio.Task[None]] = []
        self._asking: set[_Asked] = set()
        self._context_tokens = settings.context_tokens
        self._away = metrics.engine_away.labels(self.name)
        self._alive_at = -math.inf
        """The time of the last answer or piece of an answer."""
        self._failures = 0
        """Failures since the last answer."""
        self._failed: tuple[GenerationRequest, str] | None = None
        """The last request that failed since the last answer, and the reason."""
        self._silence: str | None = None
        """The reason why the server seems to hang; None while it gives signs of life."""
        self._is_gone = False
        """True if the last failure is perhaps that of a server that is not there."""

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
        self._beside.append(asyncio.create_task(self.watch(WATCH_SECONDS, self._look_at_server), name="engine-watch"))
        if self._server.reports_load:
            self._beside.append(asyncio.create_task(follow(self._server.load, self._slots), name="engine-look"))

    async def complete(self, request: GenerationRequest) -> Completion:
        """Answer one request. Raises EngineError.

        Cancelling the call closes the connection, so that the server stops too.
        """
        if request.adapter is not None:
            raise RequestRejected("adapter", "this engine has no adapters")
        if not self.takes_images(request.model_id):
            require_texts(request, NO_IMAGES)
        if request.pooling is None:
            prompt_room(request, self._context_tokens)  # raises RequestRejected if not even one token fits
        self._require_server()
        asked = _Asked(asyncio.create_task(self._asked(request)), asyncio.get_running_loop().time())
        self._asking.add(asked)
        request.abort.stop = asked.answering.cancel
        try:
            completion = await asked.answering
        except asyncio.CancelledError:
            if not _is_cancelled() and (request.abort.is_asked or self._is_closed):
                return Completion("", "abort", 0, 0)
            if not _is_cancelled() and asked.cut is not None:
                raise EngineUnavailable(asked.cut) from None
            raise
        except EngineUnavailable as failed:
            self._note_failure(request, failed)
            raise
        finally:
            self._asking.discard(asked)
        self._note_answer()
        return completion

    def load(self) -> EngineLoad:
        """Return how many requests have a place at the server, and how many wait for a place or a slot."""
        places, count = self._slots.places, len(self._asking)
        running = min(count, places)
        free = 0 if self.is_away else places - running  # other workers' engines may answer the jobs
        return EngineLoad(running=running, waiting=count - running, free=free, away=self._silence)

    async def close(self) -> None:
        """Abort the requests in flight and close the connections."""
        await super().close()
        for asked in self._asking:
            asked.answering.cancel()
        for task in self._beside:
            task.cancel()
        self._slots.close()
        if self.is_away:
            self._failures, self._silence = 0, None
            self._away.dec()
        await self._server.close()

    # -- absence -------------------------------------------------------------------------------------------------

    @property
    def is_away(self) -> bool:
        """True if the server hangs, or failed FAILURES requests in a row and has answered none since."""
        return self._silence is not None or self._failures >= FAILURES

    def _require_server(self) -> None:
        """Raise EngineUnavailable, with the last failure, while the server is away."""
        if self.is_away:
            raise EngineUnavailable(self._silence or (self._failed[1] if self._failed is not None else ""))

    async def probe(self, like: GenerationRequest) -> None:
        """Let the server answer a small request outside the slots. Raises EngineError."""
        tried = await self._server.post(small_request(like))
        if isinstance(tried, TryAgain):
            raise EngineUnavailable(tried.reason)
        self._note_answer()

    def _note_answer(self) -> None:
        was_away = self.is_away
        if was_away and self._is_gone:
            self._slots.restore()
        self._note_life()
        self._failures, self._failed, self._silence, self._is_gone = 0, None, None, False
        if was_away:
            self._tell()

    def _note_life(self) -> None:
        self._alive_at = asyncio.get_running_loop().time()

    def _note_failure(self, request: GenerationRequest, failed: EngineUnavailable) -> None:
        was_away = self.is_away
        self._failures += 1
        self._failed = request, str(failed)
        if self.is_away and not was_away:
            self._tell()

    def _tell(self) -> None:
        self._away.inc(1 if self.is_away else -1)
        self.changed()

    async def _look_at_server(self) -> None:
        """Look at a server that is silent or away."""
        now = asyncio.get_running_loop().time()
        if self._silence is None and self._failed is not None and self.is_away:
            with suppress(EngineError, TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):
                    await self.probe(self._failed[0])
            return
        since = max(self._alive_at, min((asked.began for asked in self._asking), default=now))
        is_silent = now - since >= WATCH_SECONDS
        if self._silence is None and not is_silent:
            return
        lack = await self._server.reach()
        if lack is None:
            if self._silence is not None:
                self._note_answer()
        elif self._silence is None:
            self._silence = f"the server at {self._server.origin} does not answer: {lack}"
            log.error("The server answers nothing; sending no request to it.", action="engine-hung", error=lack)
            self._tell()
        elif is_silent:
            for asked in self._asking:
                asked.cut = self._silence
                asked.answering.cancel()

    # -- one request ---------------------------------------------------------------------------------------------

    async def _asked(self, request: GenerationRequest) -> Completion:
        """Wait for a slot, then send the request, again if needed, in `request_timeout_seconds`. Raises EngineError."""
        async with self._slots.slot():
            self._require_server()  # it may have gone away during the wait for the slot
            number, seconds = self._slots.begin(), self._settings.request_timeout_seconds
            try:
                async with asyncio.timeout(seconds):
                    completion = await self._tried(request)
            except TimeoutError:
                self._slots.timed_out(number)
                raise EngineFailed(f"the server did not answer within {seconds:g} s", took_too_long=True) from None
            except EngineFailed as failed:
                if failed.took_too_long:
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
            failure, self._is_gone = outcome, outcome.is_away
            is_too_long = failure.after is not None and failure.after > self._settings.request_timeout_seconds
            if is_too_long or not failure.is_the_server_s:
                break
        raise EngineUnavailable(failure.reason) if failure.is_the_server_s else EngineFailed(failure.reason)


def _is_cancelled() -> bool:
    """True if the caller's own task is being cancelled; an abort cancels only the request's task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def engine_of(server: Callable[[Any, Clock], ModelServer]) -> Callable[[Any, Metrics, Clock], HttpEngine]:
    """Return the `create` of an engine's module; see `EngineModule`."""

    def create(settings: Any, metrics: Metrics, clock: Clock) -> HttpEngine:
        return HttpEngine(server(settings, clock), metrics)

    return create
