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
from statistics import median_high
from typing import Self

from pydantic import Field, model_validator

from schemas.settings import RoomSettings


class ExporterSettings(RoomSettings, env_prefix="POSTBACK_EXPORTER__"):
    """How the exporter reads Kafka, and the bounds of the wanted number of workers."""

    interval_seconds: float = Field(default=5.0, ge=0.1, le=300)
    """Seconds between two readings of Kafka."""
    min_replicas: int = Field(default=0, ge=0, le=10_000)
    """The least number of wanted workers of a lane, even if no jobs wait."""
    max_replicas: int = Field(default=100, ge=1, le=10_000)
    """The largest number of wanted workers of a lane. The number of the lane's partitions is a limit too."""
    jobs_per_second: float = Field(default=1.0, gt=0, le=100_000)
    """Jobs that one worker answers in a second, until a measurement of busy workers replaces this assumption."""
    start_seconds: float = Field(default=120.0, ge=0, le=7200)
    """Seconds from asking for a worker to its first job: for a machine, the image, and loading the model."""
    margin_seconds: float = Field(default=60.0, ge=0, le=7200)
    """Each job should be answered this many seconds before its deadline. If the 99th percentile of the answers'
    measured times is longer, that time is the margin, but at most half of the time left after a worker's start.
    """
    time_share: float = Field(default=0.25, gt=0, le=1)
    """The share of the time to a job's deadline in which the job should be answered. The rest of the time is left for
    jobs that arrive meanwhile. With the value 1, workers would start so late that a sudden rush of jobs would meet a
    full backlog."""
    down_seconds: float = Field(default=300.0, ge=0, le=3600)
    """The wanted number of workers falls only if fewer workers have sufficed for this many seconds."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError("MIN_REPLICAS is above MAX_REPLICAS; lower it")
        return self


LEAST_HORIZON_SECONDS = 30.0
"""The least time left that is assumed for a job, even for a late one, because more workers would not be ready any
sooner."""
BUSY_JOBS = 64
"""Workers are busy if at least this many jobs wait for each worker. Only busy workers show how fast a worker is."""
_MEMORY_SECONDS = 900.0
"""The time in seconds after which a measurement has lost 63 % of its weight."""
_ASSUMED_WEIGHT = 60.0
"""The assumed rate weighs as much as this many measured seconds of one busy worker."""
_MOST_AT_ONCE = 4.0
"""The largest rate of one reading, as a multiple of the average. The limit is needed because thousands of jobs may
expire or be cancelled within a second without an answer."""


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


def wanted_replicas(
    lanes: Iterable[WaitingJobs],
    jobs_per_second: float,
    settings: ExporterSettings,
    answer_seconds: float = 0.0,
    partitions: int | None = None,
) -> int:
    """Return the number of workers that the lanes of one pool need, if each worker answers `jobs_per_second`.

    At least one worker is wanted if any job waits. The bounds of the settings are applied last, and more workers than
    `partitions` of a lane are never wanted: a worker that gets no partition has no jobs. `answer_seconds` is the
    measured 99th percentile of the answers' times.
    """
    found = [lane for lane in lanes if lane.jobs]
    rate = sum(_rate_of(lane, settings, answer_seconds) for lane in found)
    needed = max(math.ceil(rate / jobs_per_second - 1e-9), 1 if found else 0)
    most = settings.max_replicas if partitions is None else min(settings.max_replicas, partitions)
    return min(most, max(settings.min_replicas, needed))


def _rate_of(lane: WaitingJobs, settings: ExporterSettings, answer_seconds: float) -> float:
    """Return the jobs per second that this lane demands."""

    def rate(jobs: int, seconds_left: float) -> float:
        free = seconds_left - settings.start_seconds
        # The margin for an answer is at most half of the free time: more workers would not shorten the answers.
        margin = max(settings.margin_seconds, min(answer_seconds, free / 2))
        return jobs / max(LEAST_HORIZON_SECONDS, (free - margin) * settings.time_share)

    known = max((rate(place, seconds) for place, seconds in enumerate(lane.seconds_left, start=1)), default=0.0)
    if not lane.unread:
        return known
    # Jobs arrive with about the same time to live, so unread jobs are due after the known ones.
    return max(known, rate(lane.jobs, max(lane.seconds_left, default=0.0)))


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


def answer_seconds(before: float, measured: Sequence[float]) -> float:
    """Return the time that a pool needs for an answer: the median of the 99th percentiles that its workers measured.

    A worker's first answers say little, and one odd worker should not decide for the pool. While no worker runs, the
    value `before` is kept, because the next backlog is probably of the same kind.
    """
    return median_high(measured) if measured else before


class Throughput:
    """The average rate of busy workers. Earlier seconds have less weight, and the first value is an assumption.

    Workers that are not busy answer only as many jobs as arrive, so their rate is used only if it is above the average.
    """

    def __init__(self, assumed: float) -> None:
        self._assumed = assumed
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
        is_busy = min(waiting, last[2]) >= BUSY_JOBS * workers
        if is_busy or jobs > self.jobs_per_second * seconds:
            kept = math.exp(-(at - last[0]) / _MEMORY_SECONDS)
            self._jobs = self._jobs * kept + min(jobs, _MOST_AT_ONCE * self.jobs_per_second * seconds)
            self._seconds = self._seconds * kept + seconds
