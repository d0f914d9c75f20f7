"""The number of workers that answers all waiting jobs before their deadlines. Pure functions, without clock and I/O.

Kafka gives jobs to workers in the order of their arrival. A job is in time if the workers answer it, and all jobs
before it in its lane, within the time that is left. So each job demands a rate: its place in its lane, divided by the
time left. A lane demands the highest rate of its jobs. The rates of one pool's lanes add up.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEAST_HORIZON_SECONDS = 30.0
"""The least time left that is assumed for a job, even for a late one, because more workers would not be ready any
sooner."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The bounds and the times with which the number of workers is planned."""

    min_replicas: int = 0
    max_replicas: int = 100
    start_seconds: float = 120.0
    """Seconds from asking for a worker to its first job."""
    margin_seconds: float = 60.0
    """Each job should be answered this many seconds before its deadline."""
    answer_seconds: float = 0.0
    """The measured 99th percentile of the answers' times. If it is longer than `margin_seconds`, it is used as the
    margin instead."""
    time_share: float = 0.25
    """Each job should be answered within this share of the time to its deadline."""


@dataclass(frozen=True, slots=True)
class WaitingJobs:
    """The jobs that wait in one lane."""

    seconds_left: Sequence[float]
    """Seconds to each known job's deadline, in the order of arrival. The number is negative if the deadline has
    passed.
    """
    unread: int = 0
    """Number of further jobs, which arrived after the known jobs."""

    @property
    def jobs(self) -> int:
        """The number of all jobs."""
        return len(self.seconds_left) + self.unread


def wanted_replicas(lanes: Iterable[WaitingJobs], jobs_per_second: float, plan: Plan) -> int:
    """Return the number of workers that the lanes of one pool need, if each worker answers `jobs_per_second`.

    At least one worker is wanted if any job waits. The bounds of the plan are applied last.
    """
    found = [lane for lane in lanes if lane.jobs]
    rate = sum(_rate_of(lane, plan) for lane in found)
    needed = max(math.ceil(rate / jobs_per_second - 1e-9), 1 if found else 0)
    return max(plan.min_replicas, min(plan.max_replicas, needed))


def _rate_of(lane: WaitingJobs, plan: Plan) -> float:
    """Return the jobs per second that this lane demands."""
    rate = max(
        (place / _horizon(seconds, plan) for place, seconds in enumerate(lane.seconds_left, start=1)), default=0.0
    )
    if lane.unread:
        # Jobs arrive with about the same time to live, so unread jobs are due after the known ones.
        latest = max(lane.seconds_left, default=0.0)
        rate = max(rate, lane.jobs / _horizon(latest, plan))
    return rate


def _horizon(seconds_left: float, plan: Plan) -> float:
    free = seconds_left - plan.start_seconds
    # The margin for an answer is at most half of the free time, because more workers would not shorten the answers.
    margin = max(plan.margin_seconds, min(plan.answer_seconds, free / 2))
    return max(LEAST_HORIZON_SECONDS, (free - margin) * plan.time_share)


class Hysteresis:
    """Follows a number: upwards at once, but downwards only when the number has been lower for `down_seconds`."""

    def __init__(self, down_seconds: float) -> None:
        self._down_seconds = down_seconds
        self._peaks: deque[tuple[float, int]] = deque()
        """The numbers of the last `down_seconds` that are above all later numbers, each with its time."""

    def follow(self, at: float, number: int) -> int:
        """Return the highest number of the last `down_seconds`, including `number`. Times never run backwards."""
        while self._peaks and self._peaks[-1][1] <= number:
            self._peaks.pop()
        self._peaks.append((at, number))
        while self._peaks[0][0] < at - self._down_seconds:
            self._peaks.popleft()
        return self._peaks[0][1]
