"""How often a service is asked. Its limit holds for the operator's key or address, so every job waits in one queue."""

from __future__ import annotations

import asyncio

from telemetry.clock import Clock
from workers.enrichment.evidence import Unreadable

PATIENCE_SECONDS = 2.0
"""How long a job waits where the service asks for it. Whoever asks for more is left alone until then."""


class Pace:
    """At most one request in `interval_seconds`, first come, first served."""

    def __init__(self, clock: Clock, interval_seconds: float) -> None:
        self._clock = clock
        self._interval = interval_seconds
        self._queue = asyncio.Lock()
        self._next = clock.monotonic()
        self._rest_ends = self._next

    async def turn(self) -> None:
        """Wait for the next turn. A waiter that is cancelled takes none. Raises Unreadable while the service rests."""
        self._check_rest()
        async with self._queue:
            self._check_rest()
            now = self._clock.monotonic()
            await asyncio.sleep(max(0.0, self._next - now, self._rest_ends - now))
            self._next = self._clock.monotonic() + self._interval

    def rest(self, seconds: float) -> None:
        """The service asked for silence."""
        self._rest_ends = max(self._rest_ends, self._clock.monotonic() + seconds)

    def _check_rest(self) -> None:
        left = self._rest_ends - self._clock.monotonic()
        if left > PATIENCE_SECONDS:
            raise Unreadable(f"the search service asks for {left:.0f} s without requests")
