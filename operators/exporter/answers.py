"""The time that a pool's answers take, from the announcements of its workers."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_high


class AnswerTime:
    """The 99th percentile of the answers' times in seconds: the median of those that the workers measured.

    A worker's first answers say little, and one odd worker should not decide for the pool. The last value stays while
    no worker runs: the next backlog is of the same kind.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """0 before the first measurement."""

    def observe(self, measured: Sequence[float]) -> None:
        """Take in the present measurements, one for each worker that has one."""
        if measured:
            self.seconds = median_high(measured)
