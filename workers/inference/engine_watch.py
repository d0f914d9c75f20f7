"""The engine's health, judged by the outcomes of the jobs' requests and by the engine's own report."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.throttle import LogThrottle
from workers.engines.base import EngineError, EngineLost
from workers.system.side_task import SideTask

AWAY_SECONDS = 10.0
"""Seconds without an answer from the engine after which the worker is not ready; also the pause between two warnings
that the engine is away."""

log = get_logger()


class EngineWatch(SideTask):
    """Tracks the engine's absence. The event loop updates the watch, and the health server's threads read it.

    Only jobs send requests to the engine, so the watch learns nothing while no job waits. At such times it reports only
    the engine's own reason, which `away` returns.
    """

    def __init__(self, clock: Clock, away: Callable[[], str | None] = lambda: None) -> None:
        self._clock = clock
        self._away = away
        self.asking = 0
        """The number of jobs that wait for the engine."""
        self._away_since: float | None = None
        self._why = ""
        self._throttle = LogThrottle(AWAY_SECONDS)
        self._ended = asyncio.Event()
        self._lost: EngineLost | None = None

    def answered(self) -> None:
        """Record that the engine answered a request, and log the end of a long absence."""
        if self._away_since is None:
            return
        away, self._away_since = self._clock.monotonic() - self._away_since, None
        if away > AWAY_SECONDS:
            log.info(f"The engine answers again after {away:.0f} s.", action="engine-back", away_seconds=round(away))

    def failed(self, error: EngineError) -> None:
        """Record that the engine failed to answer a request. The error's text goes to the log and to `/readyz`."""
        now = self._clock.monotonic()
        self._why = str(error)
        if self._away_since is None:
            self._away_since = now
        if self._throttle.admit(now) is not None:
            log.warning(
                "The engine did not answer a request; asking again for each waiting job until its TTL ends.",
                action="engine-unavailable",
                why=self._why,
                jobs=self.asking,
            )
        if isinstance(error, EngineLost):
            self._lost = error
            self._ended.set()

    def reasons(self) -> list[str]:
        """Return the reason why the engine is away: its own, else its last error if jobs wait for over ten seconds."""
        known = self._away()
        if known is not None:
            return [known]
        since = self._away_since
        seconds = self._clock.monotonic() - since if since is not None and self.asking else 0.0
        return [f"the engine has not answered for {seconds:.0f} s: {self._why}"] if seconds > AWAY_SECONDS else []

    async def ended(self) -> None:
        """Wait until a request fails because the engine cannot be loaded again, then raise the request's EngineLost."""
        await self._ended.wait()
        if self._lost is not None:
            raise self._lost
