"""A model of the Kafka that the gateway's relay meets: one transactional.id, some topics, and one committed position.

A transaction's records and its position are pieces, each in a place: a partition, or the group's offsets. A transaction
ends with a marker in each place that it touched, and a marker ends all open pieces of that place. Kafka confirms a
commit before it has written the markers. A broker that is killed in between forgets to write them (`settler_state`):
the confirmed pieces stay open, until a later transaction of the same id ends them with its own.

The model assumes that an outage outlasts the producer's timeouts: a producer that was open before a crash fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

PARTITIONS = 2
OFFSETS = ("offsets", 0)
Place = tuple[str, int]
Pause = Callable[[Callable[[], bool]], None]


class State(Enum):
    """The state of a piece."""

    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"


class Lost(Enum):
    """The fate of a commit whose answer is lost."""

    APPLIED = "applied"
    IGNORED = "ignored"


@dataclass(slots=True)
class Piece:
    """A record, or a position."""

    place: Place
    key: bytes | None = None
    value: bytes | None = None
    position: int = -1
    state: State = State.OPEN


@dataclass(slots=True)
class _Partition:
    leader: int = 0
    replicas: tuple[int, ...] = (0,)


@dataclass(slots=True)
class _Topic:
    partitions: dict[int, _Partition]
    error: None = None


@dataclass(slots=True)
class _Metadata:
    topics: dict[str, _Topic]


@dataclass
class RelayKafka:
    """The brokers: their pieces in the order of arrival, and the faults to come."""

    now: Callable[[], float]
    pause: Pause
    """Called in each request; lets other parts of the simulation run until the condition is true."""
    pieces: list[Piece] = field(default_factory=list)
    epoch: int = 0
    """The epoch of the newest producer; older producers are fenced."""
    running: list[Piece] = field(default_factory=list)
    """The pieces of the transaction that is under way."""
    unmarked: list[Piece] = field(default_factory=list)
    """The pieces of the last confirmed transaction, while its markers are not written."""
    away: bool = False
    lost: Lost | None = None
    """The fate of the next commit, if its answer is to be lost."""
    crashes: int = 0
    undone: int = 0
    """Number of confirmed transactions that crashes undid."""
    fenced: int = 0

    def records(self) -> list[Piece]:
        """Return the records that a `read_committed` reader sees in the end, without those of sweeps."""
        return [
            piece
            for piece in self.pieces
            if piece.place != OFFSETS and piece.state is State.COMMITTED and piece.value is not None
        ]

    def crash(self) -> None:
        """Kill the broker, and start it again."""
        self.crashes += 1
        self.undone += bool(self.unmarked)
        for piece in self.unmarked:
            piece.state = State.OPEN
        self.unmarked.clear()
        self.running.clear()  # the pieces stay open

    def forget_position(self) -> None:
        """Forget the group's offsets, as Kafka does after a week without a commit."""
        self.pieces = [piece for piece in self.pieces if piece.place != OFFSETS]

    def init(self) -> int:
        """Fence older producers, and abort their transaction. Returns the new producer's epoch."""
        self.reach()
        self.epoch += 1
        self._end(State.ABORTED)
        self.unmarked.clear()
        return self.epoch

    def add(self, epoch: int, pieces: Sequence[Piece]) -> None:
        """Add pieces to the transaction under way. A new transaction begins only after the last one's markers."""
        self._admit(epoch)
        self.unmarked.clear()
        self.running += pieces
        self.pieces += pieces

    def end(self, epoch: int, state: State) -> None:
        """End the transaction under way."""
        self._admit(epoch)
        fate, self.lost = (self.lost, None) if state is State.COMMITTED else (None, self.lost)
        if fate is not Lost.IGNORED:
            ended = list(self.running)
            self._end(state)
            self.unmarked = ended if state is State.COMMITTED else []
        if fate is not None:
            raise failure(KafkaError._TIMED_OUT, "the answer to the commit is lost")

    def position(self) -> int:
        """Return the committed position; -1001 if there is none.

        A `read_committed` reader is answered only after the markers, so an answer shows that they are written.
        """
        self.reach()
        told = [piece for piece in self.pieces if piece.place == OFFSETS]
        if any(piece.state is State.OPEN for piece in told):
            raise failure(KafkaError._TIMED_OUT, "an offset's commit is pending")
        self.unmarked.clear()
        committed = [piece.position for piece in told if piece.state is State.COMMITTED]
        return committed[-1] if committed else -1001

    def reach(self) -> None:
        """Let a request travel. Raises KafkaException if no broker answers."""
        self.pause(lambda: True)
        if self.away:
            patience = self.now() + 1.0
            self.pause(lambda: self.now() >= patience)
            raise failure(KafkaError._TIMED_OUT, "no broker answers")

    def producer(self, _config: dict[str, Any]) -> Any:
        """Make a producer, typed as the client's own class expects."""
        return RelayProducer(self)

    def consumer(self, _config: dict[str, Any]) -> Any:
        """Make a consumer that is asked for its group's offsets only."""
        return RelayConsumer(self)

    def _admit(self, epoch: int) -> None:
        self.reach()
        if epoch != self.epoch:
            self.fenced += 1
            raise failure(KafkaError._FENCED, "a newer producer has this transactional.id")

    def _end(self, state: State) -> None:
        """Write markers, which also end older open pieces of the same places."""
        places = {piece.place for piece in self.running}
        for piece in self.pieces:
            if piece.state is State.OPEN and piece.place in places:
                piece.state = state
        self.running.clear()


class RelayProducer:
    """The calls of `confluent_kafka.Producer` that a `TransactionalProducer` makes."""

    def __init__(self, kafka: RelayKafka) -> None:
        self._kafka = kafka
        self._epoch = 0
        self._crashes = kafka.crashes
        self._queue: list[Piece] = []

    def __len__(self) -> int:
        return len(self._queue)

    def init_transactions(self, _seconds: float) -> None:
        self._epoch = self._kafka.init()
        self._crashes = self._kafka.crashes

    def begin_transaction(self) -> None:
        self._queue.clear()

    def produce(
        self, topic: str, value: bytes | None, key: bytes | None, *, partition: int, headers: object = None
    ) -> None:
        self._queue.append(Piece((topic, partition), key, value))

    def poll(self, seconds: float) -> None:
        try:
            self._send(())
        finally:
            if self._queue or not seconds:
                until = self._kafka.now() + seconds
                self._kafka.pause(lambda: self._kafka.now() >= until)

    def list_topics(self, topic: str, timeout: float) -> _Metadata:
        self._kafka.reach()
        return _Metadata({topic: _Topic({number: _Partition() for number in range(PARTITIONS)})})

    def send_offsets_to_transaction(self, offsets: list[TopicPartition], _group: object, _seconds: float) -> None:
        self._send([Piece(OFFSETS, position=each.offset) for each in offsets])

    def commit_transaction(self, _seconds: float) -> None:
        self._send(())
        self._kafka.end(self._epoch, State.COMMITTED)

    def abort_transaction(self, _seconds: float) -> None:
        self._queue.clear()
        self._kafka.end(self._epoch, State.ABORTED)

    def purge(self) -> None:
        self._queue.clear()

    def _send(self, further: Sequence[Piece]) -> None:
        if self._crashes != self._kafka.crashes:
            raise failure(KafkaError._TIMED_OUT, "the broker was away for longer than the transaction's timeout")
        sent = [*self._queue, *further]
        if sent:
            self._kafka.add(self._epoch, sent)
        self._queue.clear()


class RelayConsumer:
    """The calls of `confluent_kafka.Consumer` that a `PositionReader` makes."""

    def __init__(self, kafka: RelayKafka) -> None:
        self._kafka = kafka

    def committed(self, asked: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        return [TopicPartition(each.topic, each.partition, self._kafka.position()) for each in asked]

    def consumer_group_metadata(self) -> object:
        return object()

    def close(self) -> None:
        """A consumer has nothing to close here."""


def failure(code: int, text: str) -> KafkaException:
    """Return the client's exception for an error."""
    return KafkaException(KafkaError(code, text))
