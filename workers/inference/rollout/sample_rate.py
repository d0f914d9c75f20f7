"""A limit on events per second."""

from __future__ import annotations

from telemetry.clock import Clock


class SampleRate:
    """Allows events evenly: one in each `1 / per_second` seconds, and after a pause a second's worth at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = clock.monotonic()

    def takes(self, per_second: float) -> bool:
        """True if one more event is allowed now; it counts then."""
        now = self._clock.monotonic()
        if self._next > now:
            return False
        self._next = max(self._next, now - 1.0) + 1 / per_second
        return True
