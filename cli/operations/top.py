"""The state of the fleet for `postback top`: the exporter's figures, the workers, and the events of the last minute."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cli.operations.backlog import DoneOffsets
from cli.operations.deliveries import CallbackStep
from cli.operations.exporter.exporter import Exporter
from cli.operations.exporter.reading import Connected, connected
from cli.operations.exporter.replicas import ExporterSettings
from cli.operations.tail import EventFilter, Tail
from producers.workers import live_workers
from schemas.settings import KafkaSettings
from schemas.worker import LIVE_SECONDS, WorkerAnnouncement
from telemetry.clock import Clock, Deadline, unix_ms
from telemetry.metrics import Metrics

RECENT_SECONDS = 60
_CATCH_UP_SECONDS = 3.0
"""The longest time that a frame waits for the events of the last minute."""
_NAMES = 100
_LONGEST_NAME = 60


@dataclass(frozen=True, slots=True)
class Frame:
    """The state at one time."""

    figures: dict[str, Any]
    """The JSON that the exporter shows at `/backlog`."""
    workers: tuple[WorkerAnnouncement, ...]
    recent: Counter[tuple[str, str]]
    """The number of the last minute's events for each pair of a kind (`settled`, `attempt`, `dead_letter`) and an
    outcome, error or reason."""


class RecentEvents:
    """Counts of the last minute's events, in buckets of a second.

    Names that anyone may choose are shortened, and only a few of them are counted separately.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[int, Counter[tuple[str, str]]] = {}

    def add(self, step: CallbackStep) -> None:
        """Count an event in the bucket of its second.

        A time outside the last minute is replaced by the nearest time within it.
        """
        now = int(self._clock.time())
        second = min(max(step.at_ms // 1000, now - RECENT_SECONDS + 1), now)
        bucket = self._buckets.setdefault(second, Counter())
        event = (step.what, _name_of(step)[:_LONGEST_NAME])
        if event not in bucket and len(bucket) >= _NAMES:
            event = (step.what, "others")
        bucket[event] += 1

    def counts(self) -> Counter[tuple[str, str]]:
        """Return the counts, and forget older events."""
        oldest = int(self._clock.time()) - RECENT_SECONDS
        self._buckets = {second: bucket for second, bucket in self._buckets.items() if second > oldest}
        total: Counter[tuple[str, str]] = Counter()
        for bucket in self._buckets.values():
            total += bucket
        return total


def _name_of(step: CallbackStep) -> str:
    facts = step.facts
    if step.what == "attempt":
        return str(facts.get("error") or "delivered")
    return str(facts.get("outcome") or facts.get("reason") or "unknown")


class FleetWatch:
    """Makes frames. `frame` raises ProducerError."""

    def __init__(self, kafka: KafkaSettings, reader: Connected, exporter: Exporter, tail: Tail, clock: Clock) -> None:
        self._kafka = kafka
        self._reader = reader
        self._exporter = exporter
        self._tail = tail
        self._clock = clock
        self._recent = RecentEvents(clock)

    def frame(self) -> Frame:
        """Read the state now."""
        self._exporter.read(self._reader)
        deadline = Deadline.after(self._clock, _CATCH_UP_SECONDS)
        while (steps := self._tail.poll()) and not deadline.passed:
            for step in steps:
                self._recent.add(step)
        since_ms = unix_ms(self._clock) - int(LIVE_SECONDS * 1000)
        scanner = self._reader.scanner
        workers = live_workers(scanner.read(scanner.ranges(self._kafka.topics.workers, since_ms)), since_ms)
        figures = json.loads(self._exporter.backlog("").body)
        return Frame(figures, tuple(workers), self._recent.counts())


@contextmanager
def watching(
    kafka: KafkaSettings, settings: ExporterSettings, done_offsets: DoneOffsets, clock: Clock
) -> Iterator[FleetWatch]:
    """Connect to Kafka for the duration of a `with` block. Raises ProducerError."""
    since_ms = unix_ms(clock) - RECENT_SECONDS * 1000
    with connected(kafka, done_offsets) as reader, Tail(kafka, EventFilter(), since_ms) as tail:
        exporter = Exporter(kafka.topics, lambda: connected(kafka, done_offsets), settings, Metrics(), clock)
        yield FleetWatch(kafka, reader, exporter, tail, clock)
