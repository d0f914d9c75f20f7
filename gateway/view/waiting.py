"""Waiting for rows: a request looks again when the view of this process has written, and otherwise from time to time.

A view in another process announces nothing here, so each waiter also looks every POLL_SECONDS.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from telemetry.clock import Clock, Deadline, SystemClock

POLL_SECONDS = 0.5

T = TypeVar("T")
_CLOCK = SystemClock()

Key = tuple[str, str | None]
"""A tenant, and a job's id. None instead of the id stands for any new row of the tenant."""


class Waiting:
    """Wakes the requests that wait in this process. `announce` is for any thread, `until` for the event loop."""

    def __init__(self, clock: Clock = _CLOCK) -> None:
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._events: defaultdict[Key, set[asyncio.Event]] = defaultdict(set)

    async def until(self, key: Key, look: Callable[[], Awaitable[T | None]], seconds: float) -> T | None:
        """Call `look` now and after each change of the key, until it returns a value. Returns None after `seconds`.

        `key`: `(tenant, job id)` waits for a job's result, `(tenant, None)` for any new row of the tenant.
        """
        self._loop = asyncio.get_running_loop()
        deadline, changed = Deadline.after(self._clock, seconds), asyncio.Event()
        self._events[key].add(changed)
        try:
            while (found := await look()) is None and not deadline.passed:
                await _wait(changed, min(POLL_SECONDS, deadline.remaining))
                changed.clear()
            return found
        finally:
            self._events[key].discard(changed)
            if not self._events[key]:
                del self._events[key]

    def announce(self, changed: Iterable[tuple[str, str]]) -> None:
        """Wake the waiters of these jobs, as (tenant, job id), and of their tenants. Call this after the commit."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake, list(changed))

    def _wake(self, changed: list[tuple[str, str]]) -> None:
        keys: set[Key] = {*changed, *((tenant, None) for tenant, _ in changed)}
        for key in keys & self._events.keys():
            for event in self._events[key]:
                event.set()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
