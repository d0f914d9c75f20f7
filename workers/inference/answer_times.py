"""How long this worker's answers take. Workers announce it, so that the exporter can plan with it."""

from __future__ import annotations

import math
from collections import deque

KEPT = 1000
"""Answers that are remembered: ten of them took longer than their 99th percentile."""


class AnswerTimes:
    """The times of the last answers, from a job's first source to its answer, in seconds."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT)

    def add(self, seconds: float) -> None:
        """Add an answered job."""
        self._seconds.append(seconds)

    def p99(self) -> float | None:
        """Return the 99th percentile in seconds, of few answers the longest; None without an answer."""
        in_order = sorted(self._seconds)
        return in_order[math.ceil(0.99 * len(in_order)) - 1] if in_order else None
