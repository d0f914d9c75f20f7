"""The exporter's loop: it reads Kafka every few seconds, and keeps the last figures for its pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from http import HTTPStatus
from threading import Event
from typing import Protocol

from cli.operations.exporter.figures import FigureGauges, FleetFigures, ReadingTime, WorkerPool
from cli.operations.exporter.reading import Facts
from cli.operations.exporter.settings import ExporterSettings
from cli.operations.exporter.waiting import Lanes
from producers.errors import ProducerError
from schemas.topics import Topics
from telemetry.clock import Clock, unix_ms
from telemetry.health import HealthPage, Heartbeat, Readiness
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from telemetry.peers import PeerWatch

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
        now = ReadingTime(unix_ms(self._clock), self._clock.monotonic())
        waiting = reader.read(now.unix_ms)
        self._kafka_answered()
        self._figures = self._figures_of(reader, waiting, now)
        self._read_at = now.monotonic
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

    def _figures_of(self, reader: FleetReader, waiting: dict[str, int], now: ReadingTime) -> FleetFigures:
        workers, answers, by_pool = reader.facts.workers(), reader.facts.answers(), reader.lanes.by_pool()
        lanes = [None, *sorted(lane for lane in by_pool if lane is not None)]
        self._pools = {lane: self._pools.get(lane) or WorkerPool(lane, self._settings) for lane in lanes}
        pools = tuple(
            self._pools[lane].figures(
                {self._topics.class_of(topic): partitions for topic, partitions in by_pool.get(lane, {}).items()},
                workers[lane],
                now,
                answers.get(lane, ()),
            )
            for lane in lanes
        )
        callbacks = reader.callbacks.estimated()
        fresh = sum(callbacks.get(topic, 0) for topic in (self._topics.results, self._topics.events))
        return FleetFigures(
            at=now.unix_ms / 1000,
            waiting=waiting,
            callbacks=sum(callbacks.values()),
            fresh_callbacks=fresh,
            dead_letters=reader.facts.dead_letters,
            disabled_endpoints=reader.facts.disabled_endpoints,
            models=reader.facts.models(),
            pools=pools,
            thin_partitions=reader.facts.thin_partitions,
            clock_skew=reader.facts.clock_skew(),
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
