"""Paces requests to a service, and limits the time of a search.

The time that a search waits for its turn does not count.

A service limits the operator's key or address, so all jobs share one queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar

from telemetry.clock import Clock
from workers.enrichment.evidence import Unreadable

PATIENCE_SECONDS = 2.0
"""If a service asks for a pause, jobs wait at most this long.

If a longer pause remains, requests to the service fail."""
MAX_REST_SECONDS = 3600.0
"""Cap on the pause that a service may ask for."""


class Allowance:
    """The remaining time of one search. The time does not run while the search waits `in_line` for a turn."""

    def __init__(self, seconds: float) -> None:
        self.left_seconds = seconds
        """The remaining seconds, updated only when the search starts to wait and when the search ends."""
        self.had_a_turn = False
        """True after the search's first turn.

        From then on, the search's requests go before searches that have had no turn.
        """
        self._limit = asyncio.timeout(None)
        self._waits = 0
        self._is_open = False

    @asynccontextmanager
    async def limiting(self) -> AsyncIterator[Allowance]:
        """Raise TimeoutError if the body of this context takes longer than the remaining time."""
        async with self._limit:
            token = _current.set(self)
            self._is_open = True
            self._run()
            try:
                yield self
            finally:
                _current.reset(token)
                self._stand_still()
                self._is_open = False

    @contextmanager
    def in_line(self) -> Iterator[None]:
        """Stop the time while the context waits for a turn. Several requests of a search may wait at once."""
        self._waits += 1
        self._stand_still()
        try:
            yield
        finally:
            self._waits -= 1
            if not self._waits:
                self._run()

    def _run(self) -> None:
        self._reschedule(asyncio.get_running_loop().time() + self.left_seconds)

    def _stand_still(self) -> None:
        if (ends := self._limit.when()) is not None:
            self.left_seconds = max(0.0, ends - asyncio.get_running_loop().time())
        self._reschedule(None)

    def _reschedule(self, ends: float | None) -> None:
        if self._is_open and not self._limit.expired():
            self._limit.reschedule(ends)


_current: ContextVar[Allowance | None] = ContextVar("allowance", default=None)
"""The allowance of the running search, as a context variable, so that providers need not pass it to each request."""


def current_allowance() -> Allowance:
    """Return the running search's allowance; outside of a search, return an allowance without a limit."""
    return _current.get() or Allowance(0.0)


class RequestPace:
    """Grants one request per `interval_seconds` in order of arrival, but requests of searches that have begun go first.

    Otherwise many concurrent searches would all send a first request, and no search could send its second request in
    time.
    """

    def __init__(self, clock: Clock, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._door, self._queue = asyncio.Lock(), asyncio.Lock()
        """A new search holds the lock `_door` while it is in the queue, so at most one new search is in the queue."""
        self._next = self._rest_ends = clock.monotonic()

    async def turn(self, *, behind: int = 0) -> None:
        """Let up to `behind` new searches go first, and then wait for the next turn.

        A waiter that is cancelled uses up no turn. Raises Unreadable if the service has asked for a long pause.
        """
        self._check_rest()
        allowance = current_allowance()
        with allowance.in_line():
            while behind > 0 and self._door.locked():
                await asyncio.sleep(self._interval_seconds)
                behind -= 1
            async with nullcontext() if allowance.had_a_turn else self._door, self._queue:
                self._check_rest()
                await asyncio.sleep(max(self._next, self._rest_ends) - self._clock.monotonic())
                self._next = self._clock.monotonic() + self._interval_seconds
        allowance.had_a_turn = True

    def rest(self, seconds: float) -> None:
        """Send no requests for `seconds`, since the service asks for a pause."""
        self._rest_ends = max(self._rest_ends, self._clock.monotonic() + min(seconds, MAX_REST_SECONDS))

    def _check_rest(self) -> None:
        left = self._rest_ends - self._clock.monotonic()
        if left > PATIENCE_SECONDS:
            raise Unreadable(f"the search service asks for {left:.0f} s without requests")
