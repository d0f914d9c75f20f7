"""The times of this worker's answers.

The worker announces the times' 99th percentile, with which the exporter plans the number of workers.
"""

from __future__ import annotations

import math
from collections import deque

KEPT = 1000
"""The number of answers that are remembered: enough that ten of them exceed the 99th percentile."""


class AnswerTimes:
    """The seconds that each of the last answers took: the job's enrichment and generation."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT)

    def add(self, seconds: float) -> None:
        """Add the time of an answered job."""
        self._seconds.append(seconds)

    def p99(self) -> float | None:
        """Return the 99th percentile in seconds, or the longest of fewer than 100 times. None if there is no answer."""
        in_order = sorted(self._seconds)
        return in_order[math.ceil(0.99 * len(in_order)) - 1] if in_order else None
