"""One connection to Kafka, and the state that its readings build up: waiting work, letters, endpoints and workers.

The first reading of a topic begins at its start, and each later reading at the last position.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition
from kafka.admin import OffsetSpec
from kafka.protocol.consumer import IsolationLevel
from pydantic_core import to_json

from cli.operations.backlog import DoneOffsets, GroupProgress, standings_by
from producers.connection import admin_client, kafka_errors_translated
from producers.scan import Range, Scanner, Stored, StoredPlace
from schemas import topics
from schemas.codec import InvalidJob, Origin, read_job
from schemas.endpoint import EndpointKey, EndpointState, InvalidEndpointRecord, ends_disabling, read_endpoint, read_key
from schemas.groups import DELIVERY_GROUP, INFERENCE_GROUP
from schemas.settings import KafkaSettings
from schemas.topics import LETTERS_KEPT_MS, Topics
from schemas.worker import LIVE_SECONDS, InvalidAnnouncement, WorkerAnnouncement, read_announcement

READ_RECORDS = 10_000
"""The largest number of records that one reading reads, to learn their age and deadline. Further records are only
counted, and are read later."""
KNOWN_JOBS = 200_000
"""The largest number of records whose age and deadline are kept in memory. Further records are counted, and assumed to
be due after the known ones."""
NO_DEADLINE = 2**62
"""The deadline of an invalid job. A worker rejects an invalid job at once, so an invalid job has no deadline to
miss."""
DeadlineOf = Callable[[Stored, str], int | None]
"""Returns a record's deadline in Unix milliseconds, or None for a record that is no work. Gets the topic's UUID."""
Visible = Mapping[tuple[str, int], tuple[int, int]]
"""Maps a topic and partition to the first offset and to the offset after the last visible record."""


def job_deadline(record: Stored, topic_id: str) -> int:
    """Return the deadline of a record of a lane; each record is work."""
    origin = Origin(topic_id, record.place.partition, record.place.offset)
    try:
        job = read_job(record.value, record.headers, origin, record.at_ms)
    except InvalidJob:
        return NO_DEADLINE
    return min(max(job.deadline_ms, 0), NO_DEADLINE)


def callback_deadline(record: Stored, _: str) -> int | None:
    """Return NO_DEADLINE for a callback, and None for a result without one, which delivery only passes by."""
    return NO_DEADLINE if any(name == topics.CALLBACK_URL for name, _ in record.headers) else None


class OpenJobs:
    """The jobs between the ledger's base and `position` that are not done."""

    def __init__(self, topic_id: str, base: int, deadline_of: DeadlineOf = job_deadline) -> None:
        self.topic_id = topic_id
        self._deadline_of = deadline_of
        self.position = base
        """The next offset to read."""
        self.end = base
        """The offset after the partition's last record."""
        self.base = base
        self.done = 0
        """The ledger's bitmap: bit i stands for offset base + i."""
        self._offsets, self._arrived_ms, self._deadlines_ms = array("q"), array("q"), array("q")

    def advance(self, base: int, done: int, end: int) -> None:
        """Apply the ledger's present state, and forget the jobs that are done. The base never moves backwards."""
        same, self.end = (base, done) == (self.base, self.done), end
        if same:
            return
        self.base, self.done = base, done
        self.position = max(self.position, base)
        below = bisect_left(self._offsets, base)
        marks = done.to_bytes((done.bit_length() + 7) // 8, "little")
        reach = len(marks) * 8
        kept = [
            index
            for index in range(below, len(self._offsets))
            if (above := self._offsets[index] - base) >= reach or not marks[above >> 3] >> (above & 7) & 1
        ]
        if len(kept) < len(self._offsets):
            for name in ("_offsets", "_arrived_ms", "_deadlines_ms"):
                column = getattr(self, name)
                setattr(self, name, array("q", (column[index] for index in kept)))

    def add(self, record: Stored) -> None:
        """Add the next record, even if it is no valid job; skip a record that is done."""
        offset = record.place.offset
        if offset < self.position:
            return
        self.position = offset + 1
        if self.done >> (offset - self.base) & 1:
            return
        deadline_ms = self._deadline_of(record, self.topic_id)
        if deadline_ms is None:
            return
        self._offsets.append(offset)
        self._arrived_ms.append(record.at_ms)
        self._deadlines_ms.append(deadline_ms)

    @property
    def known(self) -> int:
        """The number of waiting jobs that were read."""
        return len(self._offsets)

    @property
    def unread(self) -> int:
        """The number of offsets neither read nor done. Transaction markers count like jobs until they are read."""
        return max(0, self.end - self.position - (self.done >> (self.position - self.base)).bit_count())

    @property
    def estimated(self) -> int:
        """The known work, and of the unread offsets the share that was work among the read ones; all before a reading.

        An offset that is no work is a transaction marker, or a result without a callback.
        """
        reach = self.position - self.base
        read = reach - (self.done & ((1 << reach) - 1)).bit_count()
        return self.known + (round(self.unread * self.known / read) if read else self.unread)

    @property
    def finished(self) -> int:
        """The number of offsets that are done."""
        return self.base + self.done.bit_count()

    def times(self) -> list[tuple[int, int]]:
        """Return the time of arrival and the deadline of each known job, Unix milliseconds, in the order of offsets."""
        return list(zip(self._arrived_ms, self._deadlines_ms, strict=True))


class Lanes:
    """Follows the partitions of one group's topics."""

    def __init__(self, topics: Topics, done_offsets: DoneOffsets, deadline_of: DeadlineOf = job_deadline) -> None:
        self._topics = topics
        self._done_offsets = done_offsets
        self._deadline_of = deadline_of
        self._partitions: dict[tuple[str, int], OpenJobs] = {}

    def advance(self, found: Sequence[GroupProgress]) -> None:
        """Apply the present ledgers of the group's partitions."""
        partitions: dict[tuple[str, int], OpenJobs] = {}
        for each in found:
            place = each.topic, each.partition
            known = self._partitions.get(place)
            if known is None or known.topic_id != each.topic_id or each.base < known.base:
                # The topic is new, or the group's offset was set back: read the partition again.
                known = OpenJobs(each.topic_id, each.base, self._deadline_of)
            known.advance(each.base, self._done_offsets(each.base, each.metadata), each.end)
            partitions[place] = known
        self._partitions = partitions

    def read(self, scanner: Scanner, visible: Visible) -> None:
        """Read the next jobs, the same number in each partition. Raises ProducerError."""
        unread = {
            place: (each.position, stop)
            for place, each in self._partitions.items()
            if each.position < (stop := visible.get(place, (0, 0))[1])
        }
        room = KNOWN_JOBS - sum(each.known for each in self._partitions.values())
        share = min(READ_RECORDS, room) // max(1, len(unread))
        if share <= 0:
            return
        ranges = [Range(*place, start, min(stop, start + share)) for place, (start, stop) in unread.items()]
        for record in scanner.read(ranges):
            self._partitions[record.topic, record.place.partition].add(record)
        for one in ranges:
            each = self._partitions[one.topic, one.partition]
            each.position = max(each.position, one.stop)

    def by_pool(self) -> dict[str | None, dict[str, list[OpenJobs]]]:
        """Return the partitions by engine, then by topic. The engine None stands for the lanes of the whole fleet."""
        found: dict[str | None, dict[str, list[OpenJobs]]] = defaultdict(lambda: defaultdict(list))
        for (topic, _), each in sorted(self._partitions.items()):
            found[self._topics.engine_of(topic)][topic].append(each)
        return found

    def estimated(self) -> dict[str, int]:
        """Return the number of waiting records by topic, estimated from the records that were read."""
        found: dict[str, int] = defaultdict(int)
        for (topic, _), each in self._partitions.items():
            found[topic] += each.estimated
        return dict(found)


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
        for lanes in self.lanes.by_pool().values():
            waiting |= {topic: sum(part.known + part.unread for part in parts) for topic, parts in lanes.items()}
        return waiting


@contextmanager
def connected(kafka: KafkaSettings, done_offsets: DoneOffsets) -> Iterator[Connected]:
    """Connect to Kafka for the duration of a `with` block. Raises ProducerError."""
    with admin_client(kafka) as admin, Scanner(kafka) as scanner:
        lanes = Lanes(kafka.topics, done_offsets)
        callbacks = Lanes(kafka.topics, done_offsets, callback_deadline)
        yield Connected(kafka, admin, scanner, lanes, callbacks, Facts(kafka.topics), done_offsets)
