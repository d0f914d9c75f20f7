"""A model of Kafka: brokers that many clients share, and clients with the methods that the kernel calls.

The model covers logs with the markers of transactions, transactions with fencing, and KIP-848 consumer groups. It is
as strict as Kafka where the kernel relies on Kafka, and as late as Kafka may be: markers come after the answer,
answers get lost, and requests that a client gave up arrive later. `tests/integration/test_kafka_model.py` runs the same
scripts against this model and against a real broker.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from telemetry.clock import Clock

Place = tuple[str, int]
"""A topic and a partition's number."""
Rebalanced = Callable[[Any, list[TopicPartition]], None]
Answer = TypeVar("Answer")

SESSION_SECONDS = 6.0
HEARTBEAT_SECONDS = 0.02
RETRY_SECONDS = 0.02
"""The pause of a client before it sends a request again."""
MARKERS_SECONDS = 0.05
"""The usual time from a transaction's end until its markers are written."""


class Host(Protocol):
    """The process of a client."""

    name: str
    laziness: int
    """A poll takes up to this many times longer than asked, if nothing happens."""

    @property
    def reachable(self) -> bool:
        """True if the process can exchange messages with Kafka now."""
        ...

    def point(self, what: str = "") -> None:
        """Let other threads run, and faults happen."""
        ...

    def wait(self, seconds: float) -> None:
        """Block the calling thread; an event may end the wait early."""
        ...

    def wake(self) -> None:
        """End the waits of all threads."""
        ...


class Refused(Exception):  # noqa: N818 - it names what happened
    """A broker refused a request, with this error code of the protocol."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Kind(Enum):
    """The kinds of entries in a log."""

    RECORD = "record"
    COMMIT = "commit"
    ABORT = "abort"


@dataclass(slots=True)
class Entry:
    """One offset of a log."""

    kind: Kind
    value: bytes | None
    key: bytes | None
    headers: Any
    timestamp_ms: int
    producer: int | None
    aborted: bool = False


class Log:
    """One partition. An entry's index is its offset."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.start = 0
        self._open: dict[int, int] = {}
        """The first offset of each producer's open transaction."""

    @property
    def end(self) -> int:
        """The offset after the last entry."""
        return len(self.entries)

    @property
    def stable(self) -> int:
        """The last stable offset: readers of committed records see nothing from here on."""
        return min(self._open.values(), default=self.end)

    def append(self, entry: Entry) -> None:
        """Append a record; a producer's first record opens its transaction."""
        if entry.producer is not None:
            self._open.setdefault(entry.producer, self.end)
        self.entries.append(entry)

    def mark(self, producer: int, timestamp_ms: int, *, commits: bool) -> None:
        """Append the marker that ends a producer's transaction."""
        first = self._open.pop(producer, self.end)
        if not commits:
            for entry in self.entries[first:]:
                entry.aborted = entry.aborted or entry.producer == producer
        kind = Kind.COMMIT if commits else Kind.ABORT
        self.entries.append(Entry(kind, None, None, None, timestamp_ms, None))

    def shows(self, offset: int) -> bool:
        """Return whether a reader of committed records gets the entry at this offset, once it is stable."""
        return self.entries[offset].kind is Kind.RECORD and not self.entries[offset].aborted

    def committed(self) -> list[tuple[int, Entry]]:
        """Return all records that a reader of committed records sees, with their offsets."""
        return [(offset, self.entries[offset]) for offset in range(self.start, self.stable) if self.shows(offset)]


class State(Enum):
    """The states of a transaction."""

    EMPTY = "empty"
    ONGOING = "ongoing"
    ENDING = "ending"
    ENDED = "ended"


@dataclass(slots=True)
class Transaction:
    """The coordinator's knowledge of one transactional id."""

    producer: int
    timeout_seconds: float
    epoch: int = -1
    state: State = State.EMPTY
    commits: bool = False
    since: float = 0.0
    places: list[Place] = field(default_factory=list)
    """The partitions that have no marker yet."""
    entries: list[tuple[Place, Entry]] = field(default_factory=list)
    """The records of the transaction."""
    offsets: dict[tuple[str, Place], tuple[int, str]] = field(default_factory=dict)
    """Pending offsets, by group and partition."""
    marks_at: float = 0.0
    """The time of the next marker."""


@dataclass(slots=True)
class Member:
    """A member as the group's coordinator knows it."""

    client: ModelConsumer
    epoch: int
    heard: float
    owned: set[Place] = field(default_factory=set)
    target: set[Place] = field(default_factory=set)


@dataclass(slots=True)
class Group:
    """A consumer group."""

    epoch: int = 0
    turn: int = 0
    """Another turn gives the partitions to other members."""
    members: dict[str, Member] = field(default_factory=dict)
    offsets: dict[Place, tuple[int, str]] = field(default_factory=dict)


class Kafka:
    """The brokers. Time passes in `tick`, which every request calls."""

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.clock = clock
        self.random = rng
        self.up = True
        self.logs: dict[str, list[Log]] = {}
        self.copies = 3
        self.groups: dict[str, Group] = {}
        self.transactions: dict[str, Transaction] = {}
        self.consumers: list[ModelConsumer] = []
        self.on_committed: Callable[[str, Transaction], None] = lambda transactional_id, transaction: None
        """Called when all markers of a committed transaction are about to be written."""
        self.on_expelled: Callable[[Host], None] = lambda host: None
        self._late: list[tuple[float, Callable[[], object]]] = []
        """Requests that their clients gave up, with the times of their arrival."""
        self._members = 0
        self.restless = False
        """True if a group has changed, so that its members hear of it at once."""
        self._heartbeats_at = 0.0

    # -- topics ----------------------------------------------------------------------------------------------------

    def create(self, topic: str, partitions: int) -> None:
        """Create a topic, or add partitions to it."""
        logs = self.logs.setdefault(topic, [])
        logs += [Log() for _ in range(partitions - len(logs))]
        self._reassign(topic)

    def log(self, place: Place) -> Log:
        """Return a partition's log."""
        return self.logs[place[0]][place[1]]

    def append(self, place: Place, value: bytes, producer: int | None = None) -> int:
        """Append a record as an idempotent producer does. Returns the record's offset."""
        self.log(place).append(Entry(Kind.RECORD, value, None, None, self._now_ms, producer))
        self.stir(place)
        return self.log(place).end - 1

    def stir(self, place: Place | None = None) -> None:
        """Wake the consumers that read this partition; without one, all consumers."""
        for consumer in self.consumers:
            if place is None or consumer.reads(place):
                consumer.host.wake()

    # -- faults ----------------------------------------------------------------------------------------------------

    def go_away(self) -> None:
        """Let all brokers stop answering."""
        self.tick()
        self.up = False

    def come_back(self, *, restarted: bool) -> None:
        """Let the brokers answer again. Restarted brokers give each member a new session."""
        self.up = True
        if restarted:
            for group in self.groups.values():
                for member in group.members.values():
                    member.heard = self.clock.monotonic()
        self.tick(heartbeats=restarted)

    def reaches(self, host: Host) -> bool:
        """Return whether a request of this process is answered now."""
        return self.up and host.reachable

    def arrive_late(self, request: Callable[[], object]) -> None:
        """Let a request arrive later, although its client gave it up."""
        self._late.append((self.clock.monotonic() + 4 * self.random.random(), request))

    # -- time ------------------------------------------------------------------------------------------------------

    def tick(self, *, heartbeats: bool = True) -> None:
        """Do everything that is due: late requests, timeouts, markers, heartbeats and expiring sessions."""
        if not self.up:
            return
        now = self.clock.monotonic()
        if self._late:
            due = [request for at, request in self._late if at <= now]
            self._late = [entry for entry in self._late if entry[0] > now]
            for request in due:
                with suppress(Refused):  # its client does not wait for the answer
                    request()
        for transactional_id, transaction in self.transactions.items():
            if transaction.state is State.ONGOING and now - transaction.since >= transaction.timeout_seconds:
                transaction.epoch += 1
                self._end(transaction, commits=False)
            while transaction.state is State.ENDING and now >= transaction.marks_at:
                self._mark(transactional_id, transaction)
        if now >= self._heartbeats_at or self.restless:
            self._heartbeats_at, self.restless = now + HEARTBEAT_SECONDS, False
            self._hear(now, heartbeats=heartbeats)

    def _hear(self, now: float, *, heartbeats: bool) -> None:
        """Hear the heartbeats, and expel the members that were silent for too long."""
        for group in self.groups.values():
            for name, member in list(group.members.items()):
                if heartbeats and member.client.host.reachable:
                    member.heard = now
                elif now - member.heard > SESSION_SECONDS:
                    self.expel(group, name)
        for consumer in self.consumers:
            if consumer.host.reachable:
                self._heartbeat(consumer)

    @property
    def _now_ms(self) -> int:
        return int(self.clock.time() * 1000)

    # -- transactions ----------------------------------------------------------------------------------------------

    def init(self, transactional_id: str, timeout_seconds: float) -> tuple[int, int]:
        """Give a producer its id and a new epoch, and end the transaction of the last epoch."""
        transaction = self.transactions.get(transactional_id)
        if transaction is None:
            transaction = Transaction(len(self.transactions) + 1, timeout_seconds)
            self.transactions[transactional_id] = transaction
        if transaction.state is State.ONGOING:
            transaction.epoch += 1
            self._end(transaction, commits=False)
        if transaction.state is State.ENDING:
            raise Refused(KafkaError.CONCURRENT_TRANSACTIONS)
        transaction.epoch += 1
        transaction.state = State.EMPTY
        return transaction.producer, transaction.epoch

    def write(self, transactional_id: str, epoch: int, place: Place, entry: Entry) -> None:
        """Add a partition to the transaction, and append a record."""
        transaction = self._ongoing(transactional_id, epoch)
        if place not in transaction.places:
            transaction.places.append(place)
        transaction.entries.append((place, entry))
        self.log(place).append(entry)

    def add_offsets(
        self, transactional_id: str, epoch: int, member_of: tuple[str, str, int], positions: list[TopicPartition]
    ) -> None:
        """Add offsets of a group to the transaction. The member must be in the group, and have its present epoch."""
        transaction = self._ongoing(transactional_id, epoch)
        name, member_id, member_epoch = member_of
        group = self.groups.setdefault(name, Group())
        if member_epoch >= 0:
            member = group.members.get(member_id)
            if member is None:
                raise Refused(KafkaError.UNKNOWN_MEMBER_ID)
            if member.epoch != member_epoch:
                raise Refused(KafkaError.ILLEGAL_GENERATION)
        for position in positions:
            place = position.topic, position.partition
            transaction.offsets[name, place] = position.offset, position.metadata or ""

    def end(self, transactional_id: str, epoch: int, *, commits: bool) -> None:
        """Commit or abort the transaction. A repeated request is answered like the first."""
        transaction = self._checked(transactional_id, epoch)
        if transaction.state in (State.ENDING, State.ENDED) and transaction.commits == commits:
            return
        if transaction.state is not State.ONGOING:
            raise Refused(KafkaError.INVALID_TXN_STATE)
        self._end(transaction, commits=commits)

    def unstable(self, group: str, places: Iterable[Place]) -> bool:
        """Return whether a transaction has pending offsets of one of these partitions."""
        return any((group, place) in each.offsets for place in places for each in self.transactions.values())

    def _checked(self, transactional_id: str, epoch: int) -> Transaction:
        transaction = self.transactions[transactional_id]
        if epoch != transaction.epoch:
            raise Refused(KafkaError.INVALID_PRODUCER_EPOCH)
        return transaction

    def _ongoing(self, transactional_id: str, epoch: int) -> Transaction:
        transaction = self._checked(transactional_id, epoch)
        if transaction.state is State.ENDING:
            raise Refused(KafkaError.CONCURRENT_TRANSACTIONS)
        if transaction.state is not State.ONGOING:
            transaction.state, transaction.since, transaction.entries = State.ONGOING, self.clock.monotonic(), []
        return transaction

    def _end(self, transaction: Transaction, *, commits: bool) -> None:
        transaction.state, transaction.commits = State.ENDING, commits
        self.random.shuffle(transaction.places)
        transaction.marks_at = self.clock.monotonic() + MARKERS_SECONDS * self.random.random() ** 3

    def _mark(self, transactional_id: str, transaction: Transaction) -> None:
        """Write the next marker: of each partition, and at last of the group's offsets."""
        transaction.marks_at += MARKERS_SECONDS * self.random.random() ** 3
        if transaction.places:
            place = transaction.places.pop()
            self.log(place).mark(transaction.producer, self._now_ms, commits=transaction.commits)
            self.stir(place)
        else:
            if transaction.commits:
                self.on_committed(transactional_id, transaction)
                for (group, place), committed in transaction.offsets.items():
                    self.groups[group].offsets[place] = committed
            transaction.offsets = {}
            transaction.state = State.ENDED

    # -- groups ----------------------------------------------------------------------------------------------------

    def join(self, consumer: ModelConsumer) -> None:
        """Admit a consumer to its group."""
        self._members += 1
        consumer.member_id = f"{consumer.host.name}-{self._members}"
        group = self.groups.setdefault(consumer.group, Group())
        group.members[consumer.member_id] = Member(consumer, 0, self.clock.monotonic())
        self.rebalance(group)

    def expel(self, group: Group, member_id: str) -> None:
        """Remove a member that was silent for too long."""
        self.on_expelled(group.members[member_id].client.host)
        self.leave(group, member_id)

    def leave(self, group: Group, member_id: str) -> None:
        """Remove a member."""
        if group.members.pop(member_id, None) is not None:
            self.rebalance(group)

    def rebalance(self, group: Group) -> None:
        """Compute a new assignment: each member gets a range of each topic's partitions."""
        group.epoch += 1
        self.restless = True
        names = sorted(group.members)
        for member in group.members.values():
            member.target = set()
        for topic in sorted({topic for member in group.members.values() for topic in member.client.topics}):
            among = [name for name in names if topic in group.members[name].client.topics]
            count = len(self.logs[topic])
            for number in range(count):
                name = among[(number * len(among) // count + group.turn) % len(among)]
                group.members[name].target.add((topic, number))
        self.stir()

    def _reassign(self, topic: str) -> None:
        for group in self.groups.values():
            if any(topic in member.client.topics for member in group.members.values()):
                self.rebalance(group)

    def _heartbeat(self, consumer: ModelConsumer) -> None:
        """Tell a member what to revoke and what to add; learn what it has revoked."""
        group = self.groups.get(consumer.group)
        member = None if group is None else group.members.get(consumer.member_id)
        if group is None or member is None:
            if consumer.joined:
                consumer.is_lost = True
            elif not consumer.is_lost:
                self.join(consumer)
                consumer.joined = True
            return
        if not consumer.released and member.owned == member.target and consumer.epoch == member.epoch == group.epoch:
            return  # as nearly always
        self.restless = self.restless or bool(consumer.released)  # others may get what this member has released
        member.owned -= consumer.released
        consumer.released = set()
        surplus = member.owned - member.target
        unheard = surplus & consumer.to_assign  # the member never began with these
        consumer.to_assign -= unheard
        member.owned -= unheard
        consumer.to_revoke = surplus - unheard
        if consumer.to_revoke:
            return
        member.epoch = consumer.epoch = group.epoch
        taken = {place for other in group.members.values() for place in other.owned}
        added = member.target - taken
        member.owned |= added
        consumer.to_assign |= added


def _partitions(places: Iterable[Place]) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for topic, number in sorted(places)]


def _exception(code: int, *, fatal: bool = False, retriable: bool = False, abortable: bool = False) -> KafkaException:
    return KafkaException(KafkaError(code, "from the model", fatal, retriable, abortable))


class _Client:
    """A client's requests: they are sent again until an answer comes or the time is over."""

    def __init__(self, kafka: Kafka, host: Host) -> None:
        self.kafka = kafka
        self.host = host

    def ask(self, what: str, request: Callable[[], Answer], seconds: float) -> Answer:
        """Make a request. Raises Refused, and KafkaException if no answer comes in time."""
        deadline = self.kafka.clock.monotonic() + seconds
        while True:
            self.host.point(f"{what}?")
            if self.kafka.reaches(self.host):
                self.kafka.tick()
                try:
                    answer = request()
                except Refused as refused:
                    if refused.code != KafkaError.CONCURRENT_TRANSACTIONS:
                        raise
                else:
                    self.host.point(f"{what}!")
                    if self.kafka.reaches(self.host):
                        return answer
            left = deadline - self.kafka.clock.monotonic()
            if left <= 0:
                if self.kafka.random.random() < 0.5:
                    self.kafka.arrive_late(request)
                raise _exception(KafkaError._TIMED_OUT, retriable=True)
            self.host.wait(min(left, RETRY_SECONDS if self.kafka.reaches(self.host) else 0.5))


class ModelProducer(_Client):
    """A transactional `confluent_kafka.Producer`."""

    def __init__(self, kafka: Kafka, host: Host, config: dict[str, Any]) -> None:
        super().__init__(kafka, host)
        self._id: str = config["transactional.id"]
        self._timeout_seconds = config.get("transaction.timeout.ms", 60_000) / 1000
        self._epoch = -1
        self._producer = 0
        self._queue: list[tuple[Place, Entry]] = []
        self._ready = False
        self._begun = False
        self._known = False
        """True if the coordinator knows of the transaction."""
        self._error: KafkaException | None = None
        """An error that only an abort ends, or a fatal one that nothing ends."""
        self.stumbles = ""
        """`before` or `after`: the next commit raises an error although it may be called again, and was not or was
        made. `fenced`: it was made, its answer was lost, and then a late request has fenced this producer."""

    def init_transactions(self, timeout: float) -> None:
        self._require_not(fatal=True)
        self._producer, self._epoch = self._asked(
            "init", lambda: self.kafka.init(self._id, self._timeout_seconds), timeout
        )
        self._ready = True

    def begin_transaction(self) -> None:
        self._require_not()
        if not self._ready or self._begun:
            raise _exception(KafkaError._STATE)
        self._begun, self._known = True, False

    def produce(
        self, topic: str, value: bytes | None, key: bytes | None = None, *, partition: int = 0, headers: Any = None
    ) -> None:
        self._require_begun(fatal=True)
        if partition >= len(self.kafka.logs.get(topic, ())):
            raise _exception(KafkaError._UNKNOWN_PARTITION)
        entry = Entry(Kind.RECORD, value, key, headers, int(self.kafka.clock.time() * 1000), self._producer)
        self._queue.append(((topic, partition), entry))

    def send_offsets_to_transaction(self, positions: list[TopicPartition], metadata: bytes, timeout: float) -> None:
        self._require_begun()
        member_of, epoch = member_of_metadata(metadata), self._epoch
        self._known = True
        self._asked("offsets", lambda: self.kafka.add_offsets(self._id, epoch, member_of, positions), timeout)

    def commit_transaction(self, timeout: float) -> None:
        self._require_begun()
        began = self.kafka.clock.monotonic()
        self._write_all(timeout)
        stumbles, self.stumbles = self.stumbles, ""
        if stumbles == "before":
            raise _exception(KafkaError.COORDINATOR_NOT_AVAILABLE, retriable=True)
        self._end_with(timeout - self.kafka.clock.monotonic() + began, commits=True)
        if stumbles == "fenced":
            self._asked("init", lambda: self.kafka.init(self._id, self._timeout_seconds), timeout)
            raise self._failed(Refused(KafkaError.INVALID_PRODUCER_EPOCH))
        if stumbles == "after":
            self._begun = self._known = True
            raise _exception(KafkaError.COORDINATOR_NOT_AVAILABLE, retriable=True)

    def abort_transaction(self, timeout: float) -> None:
        self._require_begun(fatal=True)
        self._queue.clear()
        self._end_with(timeout, commits=False)
        self._error = None

    def flush(self, timeout: float) -> int:
        self._write_all(timeout)
        return 0

    def poll(self, timeout: float) -> int:
        """Send what is queued. The real client does this at any time."""
        self._write()
        if timeout:
            self.host.wait(timeout)
        return 0

    def __len__(self) -> int:
        return len(self._queue)

    def purge(self) -> None:
        self._queue.clear()

    def list_topics(self, topic: str, timeout: float) -> Any:
        def layout() -> Any:
            logs = self.kafka.logs.get(topic)
            error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART) if logs is None else None
            partition = SimpleNamespace(leader=1, replicas=list(range(self.kafka.copies)))
            partitions = dict.fromkeys(range(len(logs or ())), partition)
            return SimpleNamespace(topics={topic: SimpleNamespace(error=error, partitions=partitions)})

        return self.ask(f"layout {topic}", layout, timeout)

    def _end_with(self, timeout: float, *, commits: bool) -> None:
        if self._known:
            epoch, what = self._epoch, "commit" if commits else "abort"
            self._asked(what, lambda: self.kafka.end(self._id, epoch, commits=commits), timeout)
        self._begun = self._known = False

    def _write_all(self, timeout: float) -> None:
        deadline = self.kafka.clock.monotonic() + timeout
        while self._queue:
            self.host.point("write?")
            self._write()
            self._require_not()
            if self._queue:
                if self.kafka.clock.monotonic() >= deadline:
                    raise _exception(KafkaError._TIMED_OUT, retriable=True)
                self.host.wait(RETRY_SECONDS if self.kafka.reaches(self.host) else 0.5)

    def _write(self) -> None:
        if not self._queue or not self._begun or self._error or not self.kafka.reaches(self.host):
            return
        self.kafka.tick()
        try:
            while self._queue:
                self.kafka.write(self._id, self._epoch, *self._queue[0])
                self._queue.pop(0)
                self._known = True
        except Refused as refused:
            if refused.code != KafkaError.CONCURRENT_TRANSACTIONS:
                self._failed(refused)

    def _asked(self, what: str, request: Callable[[], Answer], timeout: float) -> Answer:
        try:
            return self.ask(what, request, timeout)
        except Refused as refused:
            raise self._failed(refused) from None

    def _failed(self, refused: Refused) -> KafkaException:
        """Remember the error as librdkafka does: a producer with an old epoch is lost, other errors need an abort."""
        if refused.code == KafkaError.INVALID_PRODUCER_EPOCH:
            self._error = _exception(KafkaError._FENCED, fatal=True)
        elif refused.code == KafkaError.INVALID_TXN_STATE:
            self._error = _exception(refused.code, fatal=True)
        else:
            self._error = _exception(refused.code, abortable=True)
        return self._error

    def _require_begun(self, *, fatal: bool = False) -> None:
        self._require_not(fatal=fatal)
        if not self._begun:
            raise _exception(KafkaError._STATE)

    def _require_not(self, *, fatal: bool = False) -> None:
        """Raise the remembered error; with `fatal`, only a fatal one."""
        if self._error is not None and (not fatal or self._error.args[0].fatal()):
            raise self._error


_MARK = b"CGMDv2:"


def member_of_metadata(metadata: bytes) -> tuple[str, str, int]:
    """Return group, member and epoch from a consumer's group metadata."""
    (epoch,) = struct.unpack_from("=i", metadata, len(_MARK))
    group, member, _ = metadata[len(_MARK) + 4 :].decode().split("\0")
    return group, member, epoch


class ModelConsumer(_Client):
    """A `confluent_kafka.Consumer` that reads committed records as a member of a group."""

    def __init__(self, kafka: Kafka, host: Host, config: dict[str, Any]) -> None:
        super().__init__(kafka, host)
        self.group: str = config["group.id"]
        self.topics: list[str] = []
        self.member_id = ""
        self.epoch = 0
        self.joined = False
        self.is_lost = False
        self.to_assign: set[Place] = set()
        self.to_revoke: set[Place] = set()
        self.released: set[Place] = set()
        self._assigned: dict[Place, int | None] = {}
        """The next offset to read of each assigned partition; None until it is known."""
        self.is_refused = False
        """True if the coordinator will refuse the committed offsets of the next partitions."""
        self._given_up: set[Place] = set()
        """Assigned partitions whose committed offsets were refused: nothing is read until they are assigned again."""
        self._paused: set[Place] = set()
        self._told_end: dict[Place, int] = {}
        self._seen: dict[Place, tuple[int, int]] = {}
        self._turn = 0

    def subscribe(
        self, topics: Sequence[str], on_assign: Rebalanced, on_revoke: Rebalanced, on_lost: Rebalanced
    ) -> None:
        self.topics = list(topics)
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost
        self.kafka.consumers.append(self)
        self.kafka.restless = True

    def reads(self, place: Place) -> bool:
        """Return whether a record of this partition would be delivered now."""
        return place in self._assigned and place not in self._paused

    def has_told_end(self, place: Place) -> bool:
        """Return whether the client has told the present end of this partition to its application."""
        return place in self._assigned and self._told_end.get(place) == self.kafka.log(place).stable

    def assignment(self) -> list[TopicPartition]:
        return _partitions(self._assigned)

    def poll(self, timeout: float) -> Message | None:
        self.host.point()
        deadline = self.kafka.clock.monotonic() + timeout * self.host.laziness
        while True:
            self.kafka.tick()
            self._rebalance()
            message = self._next()
            if message is not None or self.kafka.clock.monotonic() >= deadline:
                return message
            self.host.wait(deadline - self.kafka.clock.monotonic())

    def consume(self, count: int, timeout: float) -> list[Message]:
        found: list[Message] = []
        while len(found) < count and (message := self._next()) is not None:
            found.append(message)
        return found

    def committed(self, positions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        places = [(each.topic, each.partition) for each in positions]

        def offsets() -> list[TopicPartition]:
            if self.kafka.unstable(self.group, places):
                raise Refused(KafkaError.CONCURRENT_TRANSACTIONS)  # UNSTABLE_OFFSET_COMMIT: the client asks again
            found = self.kafka.groups.setdefault(self.group, Group()).offsets
            return [TopicPartition(*place, *found.get(place, (-1001, ""))) for place in places]

        return self.ask("committed", offsets, timeout)

    def pause(self, positions: list[TopicPartition]) -> None:
        self._paused |= {(each.topic, each.partition) for each in positions}

    def resume(self, positions: list[TopicPartition]) -> None:
        self._paused -= {(each.topic, each.partition) for each in positions}

    def incremental_unassign(self, positions: list[TopicPartition]) -> None:
        self._forget({(each.topic, each.partition) for each in positions})

    def incremental_assign(self, positions: list[TopicPartition]) -> None:
        self._assigned.update(dict.fromkeys((each.topic, each.partition) for each in positions))

    def seek(self, position: TopicPartition) -> None:
        place = position.topic, position.partition
        if self._assigned.get(place) is None:
            raise _exception(KafkaError._STATE)
        self._assigned[place] = position.offset
        self._told_end.pop(place, None)

    def get_watermark_offsets(
        self, position: TopicPartition, timeout: float = 1.0, cached: bool = False
    ) -> tuple[int, int] | None:
        place = position.topic, position.partition
        if cached:
            return self._seen.get(place)
        self._seen[place] = self.ask(
            "ends", lambda: (self.kafka.log(place).start, self.kafka.log(place).stable), timeout
        )
        return self._seen[place]

    def consumer_group_metadata(self) -> bytes:
        return _MARK + struct.pack("=i", self.epoch) + f"{self.group}\0{self.member_id}\0".encode()

    def close(self) -> None:
        places, group = set(self._assigned), self.kafka.groups.get(self.group)
        if places:
            (self._on_lost if self.is_lost else self._on_revoke)(self, _partitions(places))
        self.host.point("leave?")
        self.kafka.consumers.remove(self)
        if self.kafka.reaches(self.host) and group is not None:
            self.kafka.leave(group, self.member_id)

    def _rebalance(self) -> None:
        """Call the subscriber's callbacks, as the real client does in a poll."""
        if self.is_lost:
            places = set(self._assigned)
            self._forget(places)
            self.to_assign, self.to_revoke, self.released = set(), set(), set()
            self.is_lost = self.joined = False
            self.epoch = 0
            self.kafka.restless = True
            if places:
                self._on_lost(self, _partitions(places))
            return
        revoked = self.to_revoke & self._assigned.keys()
        if revoked:
            self._on_revoke(self, _partitions(revoked))
            self._forget(revoked)
            if not self.is_lost:
                self.released |= revoked
                self.kafka.restless = True
            self.to_revoke = set()
            return
        added, self.to_assign = self.to_assign, set()
        if added:
            self._assigned.update(dict.fromkeys(sorted(added)))
            self._on_assign(self, _partitions(added))

    def _forget(self, places: set[Place]) -> None:
        for place in places:
            self._assigned.pop(place, None)
            self._told_end.pop(place, None)
            self._given_up.discard(place)

    def _next(self) -> Message | None:
        """Return the next record or end of a partition."""
        if not self.kafka.reaches(self.host):
            return None
        places = list(self._assigned)
        for _ in places:
            self._turn += 1
            place = places[self._turn % len(places)]
            is_read = place not in self._paused and place not in self._given_up
            if is_read and (message := self._next_of(place)) is not None:
                return message
        return None

    def _next_of(self, place: Place) -> Message | None:
        log, offset = self.kafka.log(place), self._assigned[place]
        if offset is None:
            if self.is_refused:
                self.is_refused = False
                self._given_up |= {each for each, known in self._assigned.items() if known is None}
                return _message(place, -1001, error=KafkaError(KafkaError.NOT_COORDINATOR))
            if self.kafka.unstable(self.group, [place]):
                return None
            offset = self.kafka.groups[self.group].offsets.get(place, (0, ""))[0]
        offset, stable = max(offset, log.start), log.stable
        self._seen[place] = log.start, stable
        while offset < stable and not log.shows(offset):
            offset += 1
        if offset < stable:
            self._assigned[place] = offset + 1
            entry = log.entries[offset]
            return _message(place, offset, entry.value, entry.key, entry.headers, (1, entry.timestamp_ms))
        self._assigned[place] = offset
        if self._told_end.get(place) == offset:
            return None
        self._told_end[place] = offset
        return _message(place, offset, error=KafkaError(KafkaError._PARTITION_EOF))


def _message(
    place: Place,
    offset: int,
    value: bytes | None = None,
    key: bytes | None = None,
    headers: Any = None,
    timestamp: tuple[int, int] = (0, 0),
    error: KafkaError | None = None,
) -> Message:
    topic, partition = place
    return Message(topic, partition, offset, key, value, headers, error, timestamp)
