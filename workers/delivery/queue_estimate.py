"""Estimate of a busy destination's queue of turned-away records, without I/O. Times are monotonic seconds."""

from __future__ import annotations

from dataclasses import dataclass

_ROUND_SECONDS = 5.0
"""Length of a counting round. Turned-away records return after the smallest tier, and are then counted again."""
_APART_SECONDS = 3 * _ROUND_SECONDS
"""Seconds without a turned-away record after which the estimate starts over."""
_MEMORY_SECONDS = 60.0
"""Seconds after which the attempts counted so far are halved; longer than one attempt may take."""


@dataclass(slots=True)
class QueueEstimate:
    """Counts served and turned-away records, from the first turned-away record on."""

    _began: float = 0.0
    _round: float = 0.0
    _last: float = float("-inf")
    """Time of the last turned-away record."""
    _away: int = 0
    """Records turned away in this round."""
    _served: float = 0.0
    _served_last: float = 0.0

    def serve(self, now: float, weight: float = 1.0) -> None:
        """Count a finished attempt. `weight` is above 1 while the limit on simultaneous attempts is growing."""
        self._served += weight
        self._served_last = now

    def turn_away(self, now: float) -> float:
        """Count a turned-away record. Return the estimated seconds until the record's turn, 0 while unknown."""
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
        # The counted time ends with the last finished attempt. Many attempts may finish at once, and the pause after
        # them must not count as a slowdown.
        seconds = self._served_last - self._began
        for_one = seconds / self._served
        if seconds >= _MEMORY_SECONDS:
            self._began, self._served = self._began + seconds / 2, self._served / 2
        return for_one
