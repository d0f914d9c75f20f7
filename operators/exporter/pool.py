"""One pool of workers and its measurements, which are kept between readings, also after a new connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap

from operators.exporter.answers import AnswerTime
from operators.exporter.figures import ClassFigures, PoolFigures
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
        self, topics: Mapping[str, Sequence[OpenJobs]], workers: int, now: ReadingTime, answers: Sequence[float] = ()
    ) -> PoolFigures:
        """Return the pool's figures. `topics` has the partitions of each of the pool's lanes, by class.

        `answers` has one number for each worker that has announced it: the 99th percentile of its answers' times in
        seconds.
        """
        self._answers.observe(answers)
        partitions = [each for topic in topics.values() for each in topic]
        lanes = {name: _Lane.of(topic, now.unix_ms) for name, topic in topics.items()}
        classes = tuple(starmap(_of_class, lanes.items()))
        jobs = sum(each.jobs for each in classes)
        self._throughput.observe(now.monotonic, sum(each.finished for each in partitions), jobs, workers)
        wanted = wanted_replicas(
            (lane.waiting for lane in lanes.values()),
            self._throughput.jobs_per_second,
            self._plan([len(topic) for topic in topics.values()]),
        )
        return PoolFigures(
            lane=self._lane,
            jobs=jobs,
            oldest_job_seconds=max((each.oldest_job_seconds for each in classes), default=0.0),
            tightest_deadline_seconds=min(
                (each.tightest_deadline_seconds for each in classes if each.tightest_deadline_seconds is not None),
                default=None,
            ),
            workers=workers,
            jobs_per_second=self._throughput.jobs_per_second,
            answer_seconds=self._answers.seconds,
            wanted_replicas=self._hysteresis.follow(now.monotonic, wanted),
            classes=classes,
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


def _of_class(name: str, lane: _Lane) -> ClassFigures:
    return ClassFigures(name, lane.waiting.jobs, lane.oldest_seconds, lane.tightest_seconds)
