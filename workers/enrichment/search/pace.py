"""How often a service is asked. Its limit holds for the operator's key or address, so every job waits in one line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from telemetry.clock import Clock
from workers.enrichment.evidence import Unreadable
from workers.enrichment.search.allowance import current_allowance

PATIENCE_SECONDS = 2.0
"""How long a job waits where the service asks for it. Whoever asks for more is left alone until then."""
MAX_REST_SECONDS = 3600.0
"""The most that a service's wish to be left alone counts."""


class RequestPace:
    """At most one request in `interval_seconds`; first come, first served, but what has begun goes before what has not.

    Otherwise many searches at once would all make their first request, and none its second in time.
    """

    def __init__(self, clock: Clock, interval_seconds: float) -> None:
        self.interval_seconds = interval_seconds
        self._clock = clock
        self._door = asyncio.Lock()
        """Of searches that have not begun: one of them at a time stands in the queue."""
        self._at_the_door = 0
        self._queue = asyncio.Lock()
        self._next = clock.monotonic()
        self._rest_ends = self._next

    async def turn(self) -> None:
        """Wait for the next turn. A waiter that is cancelled takes none. Raises Unreadable while the service rests."""
        self._check_rest()
        allowance = current_allowance()
        with allowance.in_line():
            async with nullcontext() if allowance.had_a_turn else self._first_turn(), self._queue:
                self._check_rest()
                now = self._clock.monotonic()
                await asyncio.sleep(max(0.0, self._next - now, self._rest_ends - now))
                self._next = self._clock.monotonic() + self.interval_seconds
        allowance.had_a_turn = True

    @asynccontextmanager
    async def _first_turn(self) -> AsyncIterator[None]:
        self._at_the_door += 1
        try:
            async with self._door:
                yield
        finally:
            self._at_the_door -= 1

    async def let_pass(self, turns: int) -> None:
        """Wait while searches that have not begun take so many turns, if there are as many."""
        while turns > 0 and self._at_the_door:
            await asyncio.sleep(self.interval_seconds)
            turns -= 1

    def rest(self, seconds: float) -> None:
        """The service asked for silence."""
        self._rest_ends = max(self._rest_ends, self._clock.monotonic() + min(seconds, MAX_REST_SECONDS))

    def _check_rest(self) -> None:
        left = self._rest_ends - self._clock.monotonic()
        if left > PATIENCE_SECONDS:
            raise Unreadable(f"the search service asks for {left:.0f} s without requests")
