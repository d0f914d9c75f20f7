"""The time that a pool needs for an answer, from the announcements of the pool's workers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_high


class AnswerTime:
    """The 99th percentile of the answers' times in seconds: the median of the percentiles that the workers measured.

    A worker's first answers say little, and one odd worker should not decide for the pool. While no worker runs, the
    last value is kept, because the next backlog is probably of the same kind.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """0 before the first measurement."""

    def observe(self, measured: Sequence[float]) -> None:
        """Update `seconds` from the present measurements, one for each worker that has announced one."""
        if measured:
            self.seconds = median_high(measured)
