"""One timer for the deadlines of all running attempts.

All attempts have the same timeout, so the oldest attempt expires first, and one alarm for this attempt is enough. A
timer for each attempt, as `asyncio.timeout` makes it, would cost a twentieth of a callback on a warm connection.
"""

from __future__ import annotations

import asyncio


class Deadlines:
    """Makes timeouts of one length. All timeouts must run on the event loop of the first timeout."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: dict[asyncio.Timeout, float] = {}
        """The timeouts, each with its deadline by the loop's clock. The oldest timeout is first."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: asyncio.TimerHandle | None = None

    def begin(self) -> asyncio.Timeout:
        """Return a timeout whose time starts now. The caller must enter it at once, and pass it to `end`."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        timeout = asyncio.Timeout(None)
        self._running[timeout] = at = loop.time() + self._seconds
        if self._alarm is None:
            self._alarm = loop.call_at(at, self._ring, loop)
        return timeout

    def end(self, timeout: asyncio.Timeout) -> None:
        """Remove a timeout, whether it has expired or not."""
        self._running.pop(timeout, None)

    def close(self) -> None:
        """Cancel the alarm. Attempts that still run have no deadline from now on."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        """Expire overdue timeouts, and set the alarm for the next timeout.

        All timeouts here belong to running attempts, since `end` removes the timeouts of finished attempts.
        """
        now, self._alarm = loop.time(), None
        while self._running:
            timeout, at = next(iter(self._running.items()))
            if at > now:
                self._alarm = loop.call_at(at, self._ring, loop)
                return
            del self._running[timeout]
            timeout.reschedule(now)
