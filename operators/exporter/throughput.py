"""The jobs per second of one worker, measured from the progress of a lane's ledgers."""

from __future__ import annotations

import math

_MEMORY_SECONDS = 900.0
"""The time in seconds after which a measurement has lost 63 % of its weight."""
_ASSUMED_WEIGHT = 60.0
"""The assumed rate weighs as much as this many measured seconds of one busy worker."""
_MOST_AT_ONCE = 4.0
"""The largest rate of one reading, as a multiple of the average. The limit is needed because thousands of jobs may
expire or be cancelled within a second without an answer."""


class Throughput:
    """The average rate of busy workers. Earlier seconds have less weight, and the first value is an assumption.

    Workers that are not busy answer only as many jobs as arrive, so their rate is used only if it is above the average.
    """

    def __init__(self, assumed: float, busy_jobs: int) -> None:
        self._assumed = assumed
        self._busy_jobs = busy_jobs
        self._jobs = 0.0
        self._seconds = 0.0
        self._last: tuple[float, int, int, int] | None = None

    @property
    def jobs_per_second(self) -> float:
        """The jobs that one worker answers in a second; never 0."""
        # The assumption counts less, the more seconds are measured.
        weight = _ASSUMED_WEIGHT / (1 + self._seconds / _ASSUMED_WEIGHT)
        return (self._assumed * weight + self._jobs) / (weight + self._seconds)

    def observe(self, at: float, done: int, waiting: int, workers: int) -> None:
        """Update the average by a reading: the number of all jobs done so far, and of waiting jobs and workers now.

        `at` is in seconds and never runs backwards. A reading is ignored if, since the reading before, the number of
        workers changed or `done` fell.
        """
        last, self._last = self._last, (at, done, waiting, workers)
        if last is None or at <= last[0] or workers != last[3] or not workers or done < last[1]:
            return
        jobs, seconds = done - last[1], (at - last[0]) * workers
        is_busy = min(waiting, last[2]) >= self._busy_jobs * workers
        if is_busy or jobs > self.jobs_per_second * seconds:
            kept = math.exp(-(at - last[0]) / _MEMORY_SECONDS)
            self._jobs = self._jobs * kept + min(jobs, _MOST_AT_ONCE * self.jobs_per_second * seconds)
            self._seconds = self._seconds * kept + seconds
