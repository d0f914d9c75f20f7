"""A limit on events per second."""

from __future__ import annotations

from telemetry.clock import Clock


class SampleRate:
    """Allows one event each `1 / per_second` seconds; after a pause, one second's events may come at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = clock.monotonic()

    def takes(self, per_second: float) -> bool:
        """True if one more event is allowed now. An allowed event is counted."""
        now = self._clock.monotonic()
        if self._next > now:
            return False
        self._next = max(self._next, now - 1.0) + 1 / per_second
        return True
