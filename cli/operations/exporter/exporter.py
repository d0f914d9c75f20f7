"""The exporter: the figures of each reading, of each pool of workers and of the fleet, its loop and its pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from http import HTTPStatus
from threading import Event
from typing import Any, Protocol

from prometheus_client import Gauge

from cli.operations.exporter.reading import NO_DEADLINE, Facts, Lanes, OpenJobs
from cli.operations.exporter.replicas import (
    ExporterSettings,
    Hysteresis,
    Throughput,
    WaitingJobs,
    answer_seconds,
    wanted_replicas,
)
from producers.errors import ProducerError
from schemas.topics import LANES_KEPT_MS, Topics
from telemetry.clock import Clock, unix_ms
from telemetry.health import HealthPage, Heartbeat, Readiness
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from telemetry.peers import PeerWatch

WHOLE_FLEET = ""
"""The value of the label `lane` for workers that read the whole fleet's lanes."""


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """The waiting jobs of one class of a pool's lanes."""

    name: str
    """The class: `default`, `bulk` or `spare`."""
    jobs: int
    oldest_job_seconds: float
    """The same measure as in `PoolFigures`, for this class."""
    tightest_deadline_seconds: float | None
    """The same measure as in `PoolFigures`, for this class."""


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """One pool of workers: those of the whole fleet's lanes, or of one engine's lanes."""

    lane: str | None
    """The engine's name; None for the lanes of the whole fleet."""
    jobs: int
    oldest_job_seconds: float
    """Age of the oldest waiting job in seconds; 0 if no job waits."""
    tightest_deadline_seconds: float | None
    """Seconds until the first deadline of a waiting job, negative if that deadline has passed; None if no deadline is
    known."""
    workers: int
    """Workers that announced themselves within three minutes and have not withdrawn."""
    jobs_per_second: float
    """Jobs that one worker answers in a second."""
    answer_seconds: float
    """The 99th percentile of the answers' times; 0 before a worker has announced one."""
    wanted_replicas: int
    """Number of workers that are needed to answer all waiting jobs before their deadlines."""
    classes: tuple[ClassFigures, ...] = ()
    """The pool's waiting jobs by class; a class without a topic is absent."""


@dataclass(frozen=True, slots=True)
class FleetFigures:
    """All figures of one reading."""

    at: float
    """Time of the reading, Unix seconds."""
    waiting: Mapping[str, int]
    """For each topic (lanes, results, events and tiers), the number of records that are not done."""
    callbacks: int
    """The number of callbacks that are not delivered, including those that wait for their next attempt. Results
    without a callback do not count; of records that were not read yet, the share that has a callback is estimated."""
    fresh_callbacks: int
    """The number of `callbacks` without an attempt so far. Delivery can make their first attempts now."""
    dead_letters: int
    disabled_endpoints: int
    models: Mapping[str, int]
    """The number of workers that have each model."""
    pools: tuple[PoolFigures, ...]
    """All pools; the whole fleet's pool comes first."""
    thin_partitions: int = 0
    """Number of partitions with a copy on a broker that is away or behind."""

    def document(self, *, stale: bool) -> dict[str, Any]:
        """Return the JSON of `/backlog`. The top-level `wanted_replicas` is for the whole fleet's lanes."""
        deadlines = [
            pool.tightest_deadline_seconds for pool in self.pools if pool.tightest_deadline_seconds is not None
        ]
        return {
            "jobs": sum(pool.jobs for pool in self.pools),
            "callbacks": self.callbacks,
            "fresh_callbacks": self.fresh_callbacks,
            "oldest_job_seconds": max((pool.oldest_job_seconds for pool in self.pools), default=0.0),
            "tightest_deadline_seconds": min(deadlines, default=None),
            "wanted_replicas": self.pools[0].wanted_replicas if self.pools else 0,
            "dead_letters": self.dead_letters,
            "disabled_endpoints": self.disabled_endpoints,
            "workers": sum(pool.workers for pool in self.pools),
            "models": dict(self.models),
            "lanes": [asdict(pool) for pool in self.pools],
            "topics": dict(self.waiting),
            "read_at": self.at,
            "stale": stale,
        }


class WorkerPool:
    """The workers of the whole fleet's lanes, or of one engine's lanes."""

    def __init__(self, lane: str | None, settings: ExporterSettings) -> None:
        self._lane = lane
        self._settings = settings
        self._throughput = Throughput(settings.jobs_per_second)
        self._answer_seconds = 0.0
        self._hysteresis = Hysteresis(settings.down_seconds)

    def figures(
        self,
        topics: Mapping[str, Sequence[OpenJobs]],
        workers: int,
        now_ms: int,
        now: float,
        answers: Sequence[float] = (),
    ) -> PoolFigures:
        """Return the pool's figures. `topics` has the partitions of each of the pool's lanes, by class.

        `now_ms` is the reading's time, Unix milliseconds, and `now` the same by the monotonic clock.
        `answers` has one number for each worker that has announced it: the 99th percentile of its answers' times in
        seconds.
        """
        self._answer_seconds = answer_seconds(self._answer_seconds, answers)
        partitions = [each for topic in topics.values() for each in topic]
        lanes = [_lane(name, topic, now_ms) for name, topic in topics.items()]
        classes = tuple(figures for figures, _ in lanes)
        jobs = sum(each.jobs for each in classes)
        self._throughput.observe(now, sum(each.finished for each in partitions), jobs, workers)
        wanted = wanted_replicas(
            (waiting for _, waiting in lanes),
            self._throughput.jobs_per_second,
            self._settings,
            self._answer_seconds,
            max(map(len, topics.values()), default=None),
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
            answer_seconds=self._answer_seconds,
            wanted_replicas=self._hysteresis.follow(now, wanted),
            classes=classes,
        )


def _lane(name: str, partitions: Sequence[OpenJobs], now_ms: int) -> tuple[ClassFigures, WaitingJobs]:
    """Return the figures of a lane, and its jobs in the order of their arrival.

    Producers set the jobs' timestamps, so they may be wrong. A time outside the lane's retention is replaced by the
    nearest time within it.
    """
    earliest = now_ms - LANES_KEPT_MS
    jobs = sorted(
        (min(max(arrived, earliest), now_ms), deadline) for each in partitions for arrived, deadline in each.times()
    )
    waiting = WaitingJobs([(deadline - now_ms) / 1000 for _, deadline in jobs], sum(each.unread for each in partitions))
    tightest = min((deadline for _, deadline in jobs if deadline < NO_DEADLINE), default=None)
    return ClassFigures(
        name,
        waiting.jobs,
        (now_ms - jobs[0][0]) / 1000 if jobs else 0.0,
        (tightest - now_ms) / 1000 if tightest is not None else None,
    ), waiting


class FigureGauges:
    """Writes figures into the gauges of the exporter.

    Until the first figures arrive, only `stale` has a value, which is 1.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._labels: dict[Gauge, set[tuple[str, ...]]] = {}
        self.stale(True)

    def show(self, figures: FleetFigures) -> None:
        """Set the gauges to new figures, and remove each series that has no figure now."""
        metrics = self._metrics
        pools = {pool.lane or WHOLE_FLEET: pool for pool in figures.pools}
        self._set(metrics.waiting_records, figures.waiting)
        self._set(metrics.oldest_job_seconds, {lane: pool.oldest_job_seconds for lane, pool in pools.items()})
        self._set(
            metrics.tightest_deadline_seconds,
            {
                lane: pool.tightest_deadline_seconds
                for lane, pool in pools.items()
                if pool.tightest_deadline_seconds is not None
            },
        )
        by_class = {(lane, each.name): each for lane, pool in pools.items() for each in pool.classes}
        self._set_all(metrics.class_oldest_job_seconds, {at: each.oldest_job_seconds for at, each in by_class.items()})
        self._set(metrics.waiting_jobs, {lane: pool.jobs for lane, pool in pools.items()})
        self._set(metrics.workers, {lane: pool.workers for lane, pool in pools.items()})
        self._set(metrics.worker_jobs_per_second, {lane: pool.jobs_per_second for lane, pool in pools.items()})
        self._set(metrics.worker_answer_seconds, {lane: pool.answer_seconds for lane, pool in pools.items()})
        self._set(metrics.wanted_replicas, {lane: pool.wanted_replicas for lane, pool in pools.items()})
        self._set(metrics.model_workers, figures.models)
        metrics.waiting_callbacks.set(figures.callbacks)
        metrics.thin_partitions.set(figures.thin_partitions)
        metrics.open_dead_letters.set(figures.dead_letters)
        metrics.disabled_endpoints.set(figures.disabled_endpoints)
        metrics.figures_timestamp_seconds.set(figures.at)
        self.stale(False)

    def stale(self, is_stale: bool) -> None:
        """Set the gauge that tells whether the figures are stale."""
        self._metrics.figures_stale.set(is_stale)

    def _set(self, gauge: Gauge, values: Mapping[str, float]) -> None:
        self._set_all(gauge, {(label,): value for label, value in values.items()})

    def _set_all(self, gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
        # Set new values before removing old series, so that a scrape in between misses no series.
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        for labels in self._labels.get(gauge, set()) - values.keys():
            gauge.remove(*labels)
        self._labels[gauge] = set(values)


STUCK_SECONDS = 300.0
"""The longest time between two readings before `/healthz` fails. If a broker is silent, the reading fails within a
minute."""
STALE_SECONDS = 60.0
"""Age at which figures are stale: `/readyz` and `/backlog` then answer 503. A failed reading makes figures stale at
once."""

log = get_logger()


class FleetReader(Protocol):
    """A connection to Kafka, and the state that was read through it; see `reading.Connected`."""

    lanes: Lanes
    """The waiting jobs."""
    callbacks: Lanes
    facts: Facts

    def read(self, now_ms: int) -> dict[str, int]:
        """Read all new records; return the number of waiting records by topic. Raises ProducerError."""
        ...


class Exporter:
    """Keeps the fleet's figures up to date. Any thread may ask for the pages; one thread calls `run`."""

    def __init__(
        self,
        topics: Topics,
        connect: Callable[[], AbstractContextManager[FleetReader]],
        settings: ExporterSettings,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._topics = topics
        self._connect = connect
        self._settings = settings
        self._gauges = FigureGauges(metrics)
        self._clock = clock
        self._kafka_answered = PeerWatch(metrics, clock).expect("kafka")
        self._pools: dict[str | None, WorkerPool] = {}
        self._figures: FleetFigures | None = None
        self._read_at = 0.0
        self._problem = "No reading of Kafka is complete yet."
        self.alive = Heartbeat(clock, STUCK_SECONDS)

    def run(self, stop: Event) -> None:
        """Read until `stop` is set. An error closes the connection; the next reading opens a new one."""
        while not stop.is_set():
            try:
                with self._connect() as reader:
                    while not stop.is_set():
                        self.read(reader)
                        stop.wait(self._settings.interval_seconds)
            except ProducerError as error:
                self._fail(str(error))
            except Exception as error:
                # If the exporter ended, an autoscaler would get no numbers, so the loop goes on after any error.
                log.exception("A reading of Kafka raised; reading again.", action="exporter-reading-raised")
                self._fail(f"The reading raised {type(error).__name__}; see the log.")
            stop.wait(self._settings.interval_seconds)

    def read(self, reader: FleetReader) -> None:
        """Read once, and publish the figures. Raises ProducerError."""
        self.alive.beat()
        now_ms, now = unix_ms(self._clock), self._clock.monotonic()
        waiting = reader.read(now_ms)
        self._kafka_answered()
        self._figures = self._figures_of(reader, waiting, now_ms, now)
        self._read_at = now
        self._gauges.show(self._figures)
        if self._problem:
            log.info("Kafka was read; publishing fresh figures.", action="exporter-reading-works")
        self._problem = ""
        self.alive.beat()

    def _fail(self, problem: str) -> None:
        self.alive.beat()
        if problem != self._problem:
            log.warning(
                "Kafka could not be read; the figures are stale until a reading succeeds.",
                action="exporter-reading-failed",
                problem=problem,
            )
        self._problem = problem
        self._gauges.stale(True)

    def _figures_of(self, reader: FleetReader, waiting: dict[str, int], now_ms: int, now: float) -> FleetFigures:
        workers, answers, by_pool = reader.facts.workers(), reader.facts.answers(), reader.lanes.by_pool()
        lanes = [None, *sorted(lane for lane in by_pool if lane is not None)]
        self._pools = {lane: self._pools.get(lane) or WorkerPool(lane, self._settings) for lane in lanes}
        pools = tuple(
            self._pools[lane].figures(
                {self._topics.class_of(topic): partitions for topic, partitions in by_pool.get(lane, {}).items()},
                workers[lane],
                now_ms,
                now,
                answers.get(lane, ()),
            )
            for lane in lanes
        )
        callbacks = reader.callbacks.estimated()
        fresh = sum(callbacks.get(topic, 0) for topic in (self._topics.results, self._topics.events))
        return FleetFigures(
            at=now_ms / 1000,
            waiting=waiting,
            callbacks=sum(callbacks.values()),
            fresh_callbacks=fresh,
            dead_letters=reader.facts.dead_letters,
            disabled_endpoints=reader.facts.disabled_endpoints,
            models=reader.facts.models(),
            pools=pools,
            thin_partitions=reader.facts.thin_partitions,
        )

    def readiness(self) -> Readiness:
        """Return the reason why the figures are stale, if they are."""
        if self._problem:
            return Readiness((self._problem,))
        if self._clock.monotonic() - self._read_at > STALE_SECONDS:
            self._gauges.stale(True)
            return Readiness((f"No reading of Kafka ended within {STALE_SECONDS:g} s.",))
        return Readiness()

    def backlog(self, _: str) -> HealthPage:
        """Return the page `/backlog`. Stale figures have status 503, so that an autoscaler keeps its replicas."""
        readiness, figures = self.readiness(), self._figures
        said = figures.document(stale=not readiness.ready) if figures is not None else {"stale": True}
        body = json.dumps({**said, "reasons": list(readiness.reasons)}).encode() + b"\n"
        status = HTTPStatus.OK if readiness.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return HealthPage("application/json", body, status=status)
