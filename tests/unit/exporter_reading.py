"""The exporter's records, and a reader that has them in memory."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from threading import Event

from console.ledgers import done_offsets
from operators.backlog import GroupProgress
from operators.exporter.facts import Facts
from operators.exporter.lanes import Lanes
from operators.exporter.settings import ExporterSettings
from producers.scan import Stored, StoredPlace
from schemas.endpoint import EndpointRecord, EndpointState, key_bytes, write_endpoint
from schemas.groups import INFERENCE_GROUP
from schemas.topics import Topics
from schemas.worker import announcement, worker_key, write_announcement

TOPICS = Topics("t.")
NOW = 1_800_000_000_000
SETTINGS = ExporterSettings(start_seconds=0, margin_seconds=0, time_share=1)
ENDPOINT = ("acme", "https://hooks.example/")


def job(
    offset: int, *, ttl: float = 100, at_ms: int = NOW, topic: str = TOPICS.requests(), partition: int = 0
) -> Stored:
    value = json.dumps({"prompt": "Why?", "ttl_seconds": ttl}).encode()
    return Stored(topic, StoredPlace(partition, offset), at_ms, None, value, [])


def endpoint(state: EndpointState) -> Stored:
    said = EndpointRecord(tenant=ENDPOINT[0], url=ENDPOINT[1], state=state, at=1)
    return Stored(TOPICS.endpoints, StoredPlace(0, 0), NOW, key_bytes(ENDPOINT), write_endpoint(said), [])


def worker(replica: str, *models: str, lane: str | None = None, at_ms: int = NOW) -> Stored:
    value = write_announcement(announcement(replica, lane, models, at_ms))
    return Stored(TOPICS.workers, StoredPlace(0, 0), at_ms, worker_key(replica), value, [])


def letter(offset: int, at_ms: int = NOW) -> Stored:
    return Stored(TOPICS.dead_letters, StoredPlace(0, offset), at_ms, None, b"", [])


def mark(offset: int, at_ms: int = NOW) -> Stored:
    return Stored(TOPICS.redriven, StoredPlace(0, 0), at_ms, str(StoredPlace(0, offset)).encode(), b"", [])


@dataclass
class InMemory:
    """A reader whose records a test adds by hand."""

    lanes: Lanes = field(default_factory=lambda: Lanes(TOPICS, done_offsets, 1000, 1000))
    facts: Facts = field(default_factory=lambda: Facts(TOPICS))
    waiting: dict[str, int] = field(default_factory=dict)
    error: Exception | None = None
    stop: Event = field(default_factory=Event)

    def read(self, now_ms: int) -> dict[str, int]:
        self.stop.set()
        if self.error is not None:
            raise self.error
        self.facts.forget(now_ms)
        return dict(self.waiting)


def standing(topic_id: str, base: int, end: int) -> GroupProgress:
    return GroupProgress(INFERENCE_GROUP, TOPICS.requests(), 0, base, end, "", topic_id)
