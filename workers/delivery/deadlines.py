"""One timer for all attempts that run.

Each attempt has the same time, so whichever began first is late first, and one alarm for that one is enough. A timer
for each, as `asyncio.timeout` sets it, costs a twentieth of a callback on a warm connection.
"""

from __future__ import annotations

import asyncio


class Deadlines:
    """Gives out timeouts of one length. Belongs to the event loop that first asks for one."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: dict[asyncio.Timeout, float] = {}
        """Until when, by the loop's clock; the first that began stands first."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: asyncio.TimerHandle | None = None

    def begin(self) -> asyncio.Timeout:
        """A timeout that counts from now; to be entered at once, and given to `end` whatever becomes of it."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        timeout = asyncio.Timeout(None)
        self._running[timeout] = at = loop.time() + self._seconds
        if self._alarm is None:
            self._alarm = loop.call_at(at, self._ring, loop)
        return timeout

    def end(self, timeout: asyncio.Timeout) -> None:
        """It is over, in time or not."""
        self._running.pop(timeout, None)

    def close(self) -> None:
        """Set no alarm any more. Whatever runs still has no deadline from now on."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what is late, and wait for whichever is late next. Those that ended meanwhile are not there any more."""
        now, self._alarm = loop.time(), None
        while self._running:
            timeout, at = next(iter(self._running.items()))
            if at > now:
                self._alarm = loop.call_at(at, self._ring, loop)
                return
            del self._running[timeout]
            timeout.reschedule(now)
