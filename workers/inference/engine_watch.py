"""Whether the engine answers, by the requests that jobs put to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.throttle import LogThrottle
from workers.engines.base import EngineError, EngineLost

AWAY_SECONDS = 10.0
"""How long an engine may be away until the worker is not ready, and the pause between two log lines about it."""

log = get_logger()


class EngineWatch:
    """A `SideTask` of the process. Written to on the event loop, read by the health server's threads.

    Only jobs ask the engine, so without a waiting job there is no reason to report.
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
        """A block during which one job is at the engine, or waits for the engine to come back."""
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1

    @property
    def begun(self) -> int:
        """Requests put to the engine so far, which is the number of the newest one."""
        return self._begun

    def begin(self) -> int:
        """Count a request that is put to the engine. Returns its number."""
        self._begun += 1
        return self._begun

    def answers_after(self, number: int) -> bool:
        """Whether a request that began after this one was answered: then the engine is neither away nor behind."""
        return self._newest_answered > number

    def answered(self, number: int) -> None:
        """The engine generated an answer to this request."""
        self._newest_answered = max(self._newest_answered, number)
        if self._away_since is None:
            return
        away, self._away_since = self._clock.monotonic() - self._away_since, None
        if away > AWAY_SECONDS:
            log.info(f"The engine answers again after {away:.0f} s.", action="engine-back", away_seconds=round(away))

    def failed(self, error: EngineError) -> None:
        """The engine could not answer, and the job is not to blame. The error's text goes to the log and `/readyz`."""
        now = self._clock.monotonic()
        self._why = str(error)
        if self._away_since is None:
            self._away_since = now
        if self._throttle.admit(now) is not None:
            log.warning(
                "The engine does not answer; asking again for each waiting job until its TTL ends.",
                action="engine-unavailable",
                why=self._why,
                jobs=self._asking,
            )
        if isinstance(error, EngineLost):
            self._lost = error
            self._ended.set()

    @property
    def alive(self) -> bool:
        """True: a restart would not bring the engine's server back, and a lost engine ends the process by itself."""
        return True

    def reasons(self) -> list[str]:
        """One reason where jobs wait and the engine has answered none of them for more than ten seconds."""
        since = self._away_since
        if since is None or not self._asking:
            return []
        seconds = self._clock.monotonic() - since
        return [f"the engine has not answered for {seconds:.0f} s: {self._why}"] if seconds > AWAY_SECONDS else []

    async def ended(self) -> None:
        """Wait until the engine is lost for good. Raises EngineLost."""
        await self._ended.wait()
        if self._lost is not None:
            raise self._lost
