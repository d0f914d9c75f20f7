"""One connection to Kafka, and the state that its readings build up: waiting work, letters, endpoints and workers.

The first reading of a topic begins at its start, and each later reading at the last position.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition
from kafka.admin import OffsetSpec
from kafka.protocol.consumer import IsolationLevel
from pydantic_core import to_json

from cli.operations.backlog import DoneOffsets, standings_by
from cli.operations.exporter.waiting import Lanes, Visible, callback_deadline
from producers.connection import admin_client, kafka_errors_translated
from producers.scan import Range, Scanner, Stored, StoredPlace
from schemas.endpoint import EndpointKey, EndpointState, InvalidEndpointRecord, ends_disabling, read_endpoint, read_key
from schemas.groups import DELIVERY_GROUP, INFERENCE_GROUP
from schemas.settings import KafkaSettings
from schemas.topics import LETTERS_KEPT_MS, Topics
from schemas.worker import LIVE_SECONDS, InvalidAnnouncement, WorkerAnnouncement, read_announcement

MOST_LETTERS = 100_000
"""The largest number of dead letters that are counted. If there are more, the count stays at this number."""
MOST_ENDPOINTS = 100_000
"""The maximum number of disabled endpoints that are counted."""
MOST_WORKERS = 1_000
"""The maximum number of workers that are counted. Any program that may write to the topic could announce any number
of workers, each with 64 kB of names.
"""
MOST_MODELS = 256
"""The maximum number of models that are named."""

_CLOCKS_DIFFER_MS = 60_000


class Facts:
    """The dead letters that were not put back, the disabled endpoints and the announced workers."""

    def __init__(self, topics: Topics) -> None:
        self._takers: dict[str, Callable[[Stored], None]] = {
            topics.dead_letters: self.add_letter,
            topics.redriven: self.add_mark,  # read after the letters: a mark removes its letter, which must be known
            topics.endpoints: self.add_endpoint,
            topics.workers: self.add_worker,
        }
        self._positions: dict[tuple[str, int], int] = {}
        self._letters: dict[StoredPlace, int] = {}
        """Maps each letter's place to the letter's time in Unix milliseconds."""
        self._disabled: set[bytes] = set()
        """Digests of the disabled endpoints. Digests are used because URLs may be long."""
        self._workers: dict[bytes | None, tuple[int, WorkerAnnouncement]] = {}
        """For each key, the last announcement and its time by the broker's clock."""
        self.thin_partitions = 0
        """Number of partitions with a copy on a broker that is away or behind."""

    @property
    def topics(self) -> list[str]:
        """The topics that are followed."""
        return list(self._takers)

    def read(self, scanner: Scanner, visible: Visible, now_ms: int) -> None:
        """Read the new records of all topics, and forget letters and workers that are too old. Raises ProducerError."""
        for topic, take in self._takers.items():
            ranges = []
            for (name, partition), (start, stop) in visible.items():
                if name == topic:
                    position = max(start, self._positions.get((topic, partition), 0))
                    # A position past the end belongs to a deleted topic of the same name: read the new topic from its
                    # start.
                    ranges.append(Range(topic, partition, position if position <= stop else start, stop))
            unread = [each for each in ranges if each.start < each.stop]
            for record in scanner.read(unread):
                take(record)
            self._positions.update({(topic, each.partition): each.stop for each in unread})
        self.forget(now_ms)

    def add_letter(self, record: Stored) -> None:
        """Add a record of `dead_letters`."""
        if len(self._letters) < MOST_LETTERS:
            self._letters[record.place] = record.at_ms

    def add_mark(self, record: Stored) -> None:
        """Add a record of `dead_letters.redriven`. A mark older than its letter is from a deleted topic: ignore it."""
        place = StoredPlace.parse(record.key.decode("latin-1")) if record.key is not None else None
        if place is not None and self._letters.get(place, record.at_ms) <= record.at_ms + _CLOCKS_DIFFER_MS:
            self._letters.pop(place, None)

    def add_endpoint(self, record: Stored) -> None:
        """Add a record of `callback_endpoints`."""
        try:
            endpoint = _digest(read_key(record.key))
            said = read_endpoint(record.value) if record.value is not None else None
        except InvalidEndpointRecord:
            return
        if said is not None and said.state is EndpointState.DISABLED:
            if len(self._disabled) < MOST_ENDPOINTS:
                self._disabled.add(endpoint)
        elif ends_disabling(said):
            self._disabled.discard(endpoint)

    def add_worker(self, record: Stored) -> None:
        """Add a record of `fleet_workers`."""
        if record.value is None:
            self._workers.pop(record.key, None)
        elif record.key in self._workers or len(self._workers) < MOST_WORKERS:
            try:
                self._workers[record.key] = record.at_ms, read_announcement(record.key, record.value)
            except InvalidAnnouncement:
                return

    def forget(self, now_ms: int) -> None:
        """Forget letters that can no longer be put back, and workers that have been silent for three minutes."""
        oldest_ms = now_ms - LETTERS_KEPT_MS
        for place in [place for place, at_ms in self._letters.items() if at_ms < oldest_ms]:
            del self._letters[place]
        silent_ms = now_ms - round(LIVE_SECONDS * 1000)
        for key in [key for key, (at_ms, _) in self._workers.items() if at_ms < silent_ms]:
            del self._workers[key]

    @property
    def dead_letters(self) -> int:
        """The number of letters that can still be put back."""
        return len(self._letters)

    @property
    def disabled_endpoints(self) -> int:
        """The number of disabled endpoints."""
        return len(self._disabled)

    def workers(self) -> Counter[str | None]:
        """Count the workers by the engine whose lanes they read; the key None is for the lanes of the whole fleet."""
        return Counter(said.lane for _, said in self._workers.values())

    def answers(self) -> dict[str | None, list[float]]:
        """Return the `answer_seconds` of workers, grouped by the engine whose lanes the workers read."""
        found: dict[str | None, list[float]] = {}
        for _, said in self._workers.values():
            if said.answer_seconds is not None:
                found.setdefault(said.lane, []).append(said.answer_seconds)
        return found

    def clock_skew(self) -> dict[str, float]:
        """Return the differences between the workers' clocks and the brokers' clocks, in seconds.

        `ahead` is the largest lead of a worker's clock, and `behind` is the largest lag.
        """
        ahead = [(said.at - at_ms) / 1000 for at_ms, said in self._workers.values()]
        return {"ahead": max([0.0, *ahead]), "behind": max([0.0, *(-seconds for seconds in ahead)])}

    def models(self) -> Counter[str]:
        """For each of the models with the most workers, return the number of workers that have the model."""
        found = Counter(model for _, said in self._workers.values() for model in dict.fromkeys(said.models))
        return Counter(dict(found.most_common(MOST_MODELS)))


def _digest(endpoint: EndpointKey) -> bytes:
    return hashlib.blake2b(to_json(endpoint), digest_size=16).digest()


def visible_offsets(admin: Any, topics: Sequence[str]) -> tuple[Visible, int]:
    """Return the offsets that a read_committed reader sees, and how many partitions have a copy that is away or behind.

    Missing topics are left out. Raises kafka-python's errors.
    """
    described = [topic for topic in admin.describe_topics(list(topics)) if not topic["error_code"]]
    places = [
        TopicPartition(topic["name"], number) for topic in described for number in range(len(topic["partitions"]))
    ]
    starts = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.EARLIEST))
    stops = admin.list_partition_offsets(
        dict.fromkeys(places, OffsetSpec.LATEST), isolation_level=IsolationLevel.READ_COMMITTED
    )
    partitions = [each for topic in described for each in topic["partitions"]]
    offsets = {(place.topic, place.partition): (starts[place].offset, stops[place].offset) for place in places}
    return offsets, sum(len(each["isr_nodes"]) < len(each["replica_nodes"]) for each in partitions)


@dataclass(slots=True)
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
            visible, self.facts.thin_partitions = visible_offsets(self.admin, list(followed))
        for group, follower in ((INFERENCE_GROUP, self.lanes), (DELIVERY_GROUP, self.callbacks)):
            follower.advance([each for each in found if each.group == group])
            follower.read(self.scanner, visible)
        self.facts.read(self.scanner, visible, now_ms)
        waiting: dict[str, int] = {}
        for each in found:
            waiting[each.topic] = waiting.get(each.topic, 0) + each.undone(self.done_offsets)
        for topics in self.lanes.by_pool().values():
            waiting |= {topic: sum(part.known + part.unread for part in parts) for topic, parts in topics.items()}
        return waiting


@contextmanager
def connected(kafka: KafkaSettings, done_offsets: DoneOffsets) -> Iterator[Connected]:
    """Connect to Kafka for the duration of a `with` block. Raises ProducerError."""
    with admin_client(kafka) as admin, Scanner(kafka) as scanner:
        lanes = Lanes(kafka.topics, done_offsets)
        callbacks = Lanes(kafka.topics, done_offsets, callback_deadline)
        yield Connected(kafka, admin, scanner, lanes, callbacks, Facts(kafka.topics), done_offsets)
