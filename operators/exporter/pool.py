"""One pool of workers and its measurements. They are kept from one reading to the next, also after a new connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from operators.exporter.answers import AnswerTime
from operators.exporter.figures import PoolFigures
from operators.exporter.open_jobs import NO_DEADLINE, OpenJobs
from operators.exporter.replicas import Hysteresis, Plan, WaitingJobs, wanted_replicas
from operators.exporter.settings import ExporterSettings
from operators.exporter.throughput import Throughput
from schemas.topics import LANES_KEPT_MS


@dataclass(frozen=True, slots=True)
class ReadingTime:
    """The time of a reading by two clocks."""

    unix_ms: int
    monotonic: float


class WorkerPool:
    """The workers of the whole fleet's lanes, or of one engine's lanes."""

    def __init__(self, lane: str | None, settings: ExporterSettings) -> None:
        self._lane = lane
        self._settings = settings
        self._throughput = Throughput(settings.jobs_per_second, settings.busy_jobs)
        self._answers = AnswerTime()
        self._hysteresis = Hysteresis(settings.down_seconds)

    def figures(
        self, topics: Sequence[Sequence[OpenJobs]], workers: int, now: ReadingTime, answers: Sequence[float] = ()
    ) -> PoolFigures:
        """Return the pool's figures, computed from the partitions of each of its lanes.

        `answers` has one number for each worker that has announced it: the 99th percentile of its answers' times in
        seconds.
        """
        self._answers.observe(answers)
        partitions = [each for topic in topics for each in topic]
        lanes = [_Lane.of(topic, now.unix_ms) for topic in topics]
        jobs = sum(lane.waiting.jobs for lane in lanes)
        self._throughput.observe(now.monotonic, sum(each.finished for each in partitions), jobs, workers)
        wanted = wanted_replicas(
            (lane.waiting for lane in lanes),
            self._throughput.jobs_per_second,
            self._plan([len(topic) for topic in topics]),
        )
        return PoolFigures(
            lane=self._lane,
            jobs=jobs,
            oldest_job_seconds=max((lane.oldest_seconds for lane in lanes), default=0.0),
            tightest_deadline_seconds=min(
                (lane.tightest_seconds for lane in lanes if lane.tightest_seconds is not None), default=None
            ),
            workers=workers,
            jobs_per_second=self._throughput.jobs_per_second,
            answer_seconds=self._answers.seconds,
            wanted_replicas=self._hysteresis.follow(now.monotonic, wanted),
        )

    def _plan(self, partitions: Sequence[int]) -> Plan:
        settings = self._settings
        # A worker that gets no partition would have no jobs.
        most = min(settings.max_replicas, max(partitions, default=settings.max_replicas))
        return Plan(
            min(settings.min_replicas, most),
            most,
            settings.start_seconds,
            settings.margin_seconds,
            self._answers.seconds,
            settings.time_share,
        )


@dataclass(frozen=True, slots=True)
class _Lane:
    waiting: WaitingJobs
    oldest_seconds: float
    tightest_seconds: float | None

    @classmethod
    def of(cls, partitions: Sequence[OpenJobs], now_ms: int) -> _Lane:
        """Return the lane, with the jobs of its partitions in the order of their arrival.

        Producers set the jobs' timestamps, so they may be wrong. A time outside the lane's retention is replaced by the
        nearest time within it.
        """
        earliest = now_ms - LANES_KEPT_MS
        jobs = sorted(
            (min(max(arrived, earliest), now_ms), deadline) for each in partitions for arrived, deadline in each.times()
        )
        known = [deadline for _, deadline in jobs if deadline < NO_DEADLINE]
        waiting = WaitingJobs(
            [(deadline - now_ms) / 1000 for _, deadline in jobs], sum(each.unread for each in partitions)
        )
        oldest = (now_ms - jobs[0][0]) / 1000 if jobs else 0.0
        return cls(waiting, oldest, (min(known) - now_ms) / 1000 if known else None)
