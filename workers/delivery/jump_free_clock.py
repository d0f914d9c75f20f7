"""A wall clock for measuring hours and days."""

from __future__ import annotations

from telemetry.clock import Clock

_BELIEVED_SECONDS = 300.0
"""Seconds for which a jump of the wall clock must last before JumpFreeClock follows the jump."""
_SET_SECONDS = 1.0
"""A change of at least this number of seconds is a jump; a smaller change is a correction."""


class JumpFreeClock:
    """The wall clock in Unix milliseconds, without short-lived jumps.

    The clock follows a jump after five minutes, since a process may start before its machine knows the time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since = clock.monotonic()
        self._believed = self._shown = clock.time() - self._since

    def look(self) -> tuple[int, bool]:
        """Return the present time, and whether this clock jumped since the last call."""
        now = self._clock.monotonic()
        offset, was = self._clock.time() - now, self._believed
        if abs(offset - self._shown) > _SET_SECONDS:
            self._shown, self._since = offset, now
        elif now - self._since > _BELIEVED_SECONDS:
            self._believed = offset
        return round(1000 * (self._believed + now)), abs(self._believed - was) > _SET_SECONDS
