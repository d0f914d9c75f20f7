"""One connection to Kafka, and the state that its readings build up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from operators.backlog import GroupProgress, standings_by
from operators.exporter.facts import Facts
from operators.exporter.lanes import DoneOffsets, Lanes
from operators.exporter.open_jobs import callback_deadline
from operators.exporter.settings import ExporterSettings
from operators.exporter.visible import visible_offsets
from producers.connection import admin_client, kafka_errors_translated
from producers.scan import Scanner
from schemas.groups import DELIVERY_GROUP, INFERENCE_GROUP
from schemas.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class Connected:
    """Reads the fleet's state.

    A new connection reads all topics from their start, because an old position may belong to a deleted topic.
    """

    settings: KafkaSettings
    admin: Any
    scanner: Scanner
    lanes: Lanes
    callbacks: Lanes
    facts: Facts
    done_offsets: DoneOffsets

    def read(self, now_ms: int) -> dict[str, int]:
        """Read all new records; return the number of waiting records by topic. Raises ProducerError."""
        with kafka_errors_translated(self.settings):
            found = standings_by(self.admin, self.settings)
            followed = dict.fromkeys([*(each.topic for each in found), *self.facts.topics])
            visible = visible_offsets(self.admin, list(followed))
        for group, follower in ((INFERENCE_GROUP, self.lanes), (DELIVERY_GROUP, self.callbacks)):
            follower.advance([each for each in found if each.group == group])
            follower.read(self.scanner, visible.offsets)
        self.facts.read(self.scanner, visible.offsets, now_ms)
        self.facts.thin_partitions = visible.thin_partitions
        waiting: dict[str, int] = {}
        for each in found:
            waiting[each.topic] = waiting.get(each.topic, 0) + self._undone(each)
        for topics in self.lanes.by_pool().values():
            waiting |= {topic: sum(part.known + part.unread for part in parts) for topic, parts in topics.items()}
        return waiting

    def _undone(self, partition: GroupProgress) -> int:
        done = self.done_offsets(partition.base, partition.metadata).bit_count()
        return max(0, partition.end - partition.base - done)


@contextmanager
def connected(kafka: KafkaSettings, settings: ExporterSettings, done_offsets: DoneOffsets) -> Iterator[Connected]:
    """Connect to Kafka for the duration of a `with` block. Raises ProducerError."""
    bounds = kafka.topics, done_offsets, settings.read_records, settings.known_jobs
    with admin_client(kafka) as admin, Scanner(kafka) as scanner:
        lanes, callbacks = Lanes(*bounds), Lanes(*bounds, callback_deadline)
        yield Connected(kafka, admin, scanner, lanes, callbacks, Facts(kafka.topics), done_offsets)
