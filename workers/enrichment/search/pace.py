"""Paces requests to a service. A service limits the operator's key or address, so all jobs share one queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from telemetry.clock import Clock
from workers.enrichment.evidence import Unreadable
from workers.enrichment.search.allowance import current_allowance

PATIENCE_SECONDS = 2.0
"""If a service asks for a pause, jobs wait at most this long.

While the pause lasts longer than this, requests to the service fail."""
MAX_REST_SECONDS = 3600.0
"""Cap on the pause that a service may ask for."""


class RequestPace:
    """Grants one request per `interval_seconds` in order of arrival, but begun searches go before new searches.

    Otherwise many concurrent searches would all send a first request, and no search could send its second request in
    time.
    """

    def __init__(self, clock: Clock, interval_seconds: float) -> None:
        self.interval_seconds = interval_seconds
        self._clock = clock
        self._door = asyncio.Lock()
        """Lets new searches into the queue one at a time."""
        self._at_the_door = 0
        self._queue = asyncio.Lock()
        self._next = clock.monotonic()
        self._rest_ends = self._next

    async def turn(self) -> None:
        """Wait for the next turn. A cancelled waiter takes no turn. Raises Unreadable during a service's long pause."""
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
        """Let new searches take up to `turns` turns before the caller continues."""
        while turns > 0 and self._at_the_door:
            await asyncio.sleep(self.interval_seconds)
            turns -= 1

    def rest(self, seconds: float) -> None:
        """Send no requests for `seconds`, since the service asks for a pause."""
        self._rest_ends = max(self._rest_ends, self._clock.monotonic() + min(seconds, MAX_REST_SECONDS))

    def _check_rest(self) -> None:
        left = self._rest_ends - self._clock.monotonic()
        if left > PATIENCE_SECONDS:
            raise Unreadable(f"the search service asks for {left:.0f} s without requests")
