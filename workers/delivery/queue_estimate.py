"""How long a destination would take for those that it turns away. No I/O, no clock; times are of a monotonic one."""

from __future__ import annotations

from dataclasses import dataclass

_ROUND_SECONDS = 5.0
"""For so long those who are turned away are counted: after the smallest tier the same ones come round again."""
_APART_SECONDS = 3 * _ROUND_SECONDS
"""Who is turned away so long after the last one begins another crowd."""
_MEMORY_SECONDS = 60.0
"""What was served before counts for half. Longer than an attempt may take."""


@dataclass(slots=True)
class QueueEstimate:
    """Counts who is served and who is turned away, from when somebody is."""

    _began: float = 0.0
    _round: float = 0.0
    _last: float = float("-inf")
    """When one was turned away."""
    _away: int = 0
    """In this round."""
    _served: float = 0.0
    _served_last: float = 0.0

    def serve(self, now: float, weight: float = 1.0) -> None:
        """One attempt is over. Where fewer run at once than soon will, it counts for as many as would be over then."""
        self._served += weight
        self._served_last = now

    def turn_away(self, now: float) -> float:
        """How long it takes until it is the turn of one more; 0 while nobody knows."""
        if now - self._last > _APART_SECONDS:
            self._began = self._round = now
            self._served, self._away = 0.0, 0
        elif now - self._round >= _ROUND_SECONDS:
            self._round, self._away = now, 0
        self._last = now
        self._away += 1
        return self._away * self._seconds_for_one(now)

    def _seconds_for_one(self, now: float) -> float:
        if now - self._began < _ROUND_SECONDS or not self._served:
            return 0.0
        # Up to the last one that was served: where many are at a time, it has not slowed down in between.
        seconds = self._served_last - self._began
        for_one = seconds / self._served
        if seconds >= _MEMORY_SECONDS:
            self._began, self._served = self._began + seconds / 2, self._served / 2
        return for_one
