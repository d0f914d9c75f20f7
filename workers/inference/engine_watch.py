"""Whether the engine answers, as the jobs that ask it find out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.throttle import LogThrottle
from workers.engines.base import EngineError, EngineLost

AWAY_SECONDS = 10.0
"""How long an engine may be away before the worker is not ready, and how often it is logged."""

log = get_logger()


class EngineWatch:
    """A `SideTask` of the process. Written to on the event loop, read by the health server's threads.

    Nobody asks an engine whether it is there but jobs, so where none is asking there is nothing to tell.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._asking = 0
        self._away_since: float | None = None
        self._why = ""
        self._throttle = LogThrottle(AWAY_SECONDS)
        self._ended = asyncio.Event()
        self._lost: EngineLost | None = None
        self._begun = 0
        self._newest_answered = 0

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A job is at the engine meanwhile, or waits for it to come back."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1

    @property
    def begun(self) -> int:
        """Requests that were put to the engine so far, and so the number of the one that began last."""
        return self._begun

    def begin(self) -> int:
        """A request is put to the engine; its number."""
        self._begun += 1
        return self._begun

    def answers_after(self, number: int) -> bool:
        """Whether a request was answered that began after this one: then the engine is there, and not merely behind."""
        return self._newest_answered > number

    def answered(self, number: int) -> None:
        """It generated an answer to this request."""
        self._newest_answered = max(self._newest_answered, number)
        if self._away_since is None:
            return
        away, self._away_since = self._clock.monotonic() - self._away_since, None
        if away > AWAY_SECONDS:
            log.info("The engine answers again.", action="engine-back", away_seconds=round(away))

    def failed(self, error: EngineError) -> None:
        """It could not answer a job, through no fault of the job's. Its text goes to the log and to `/readyz`."""
        now = self._clock.monotonic()
        self._why = str(error)
        if self._away_since is None:
            self._away_since = now
        if self._throttle.admit(now) is not None:
            log.warning("The engine is away; jobs wait.", action="engine-unavailable", why=self._why, jobs=self._asking)
        if isinstance(error, EngineLost):
            self._lost = error
            self._ended.set()

    @property
    def alive(self) -> bool:
        """True: a server that is away is no reason to restart us, and an engine that is lost ends the process."""
        return True

    def reasons(self) -> list[str]:
        """One where jobs wait and none has been answered for more than ten seconds."""
        since = self._away_since
        if since is None or not self._asking:
            return []
        seconds = self._clock.monotonic() - since
        return [f"the engine has not answered for {seconds:.0f} s: {self._why}"] if seconds > AWAY_SECONDS else []

    async def ended(self) -> None:
        """Wait for as long as the engine may come back. Raises EngineLost."""
        await self._ended.wait()
        if self._lost is not None:
            raise self._lost
