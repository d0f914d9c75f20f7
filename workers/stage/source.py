"""The source of a stage's records. `Source` is the seam; `GroupSource` is a KIP-848 consumer group.

`Coordinator` reads the time since the group's coordinator last answered from librdkafka's statistics. A frozen broker
keeps its connections open, so the client sees no error before a request times out. An idle client sends few requests:
without statistics, the client saw the error only after more than a minute. Statistics cost no request and block no
thread.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.operator_error import OperatorError
from telemetry.logs import get_logger
from workers.stage.progress import Progress, UndecodableLedger
from workers.stage.record import Headers, Record

STATISTICS_MS = 2_000
_COORDINATOR = "GroupCoordinator"
_MICROSECONDS = 1e6


class Coordinator:
    """The broker that manages the group. Every member sends heartbeats to this broker, so requests are frequent.

    Times come from librdkafka's own clock. librdkafka's STATISTICS.md gives `ts` and `rxidle` in microseconds; `rxidle`
    is -1 if no byte has arrived on the present connection.
    """

    def __init__(self) -> None:
        self._heard_at: float | None = None
        self._looked_at = 0.0

    @property
    def silent_seconds(self) -> float:
        """Seconds from the coordinator's last answer to the last report; infinite if no broker can be reached."""
        return 0.0 if self._heard_at is None else self._looked_at - self._heard_at

    def statistics(self, text: str) -> None:
        """Read one statistics report; the client calls this method as its `stats_cb`."""
        found = json.loads(text)
        self._looked_at = found["ts"] / _MICROSECONDS
        if self._heard_at is None:
            self._heard_at = self._looked_at
        broker = found["brokers"].get(_COORDINATOR)
        if broker is None or broker["state"] != "UP" or broker["rxidle"] < 0:
            return
        # Ignore silence unless a request is unanswered, because a healthy broker is also silent between two heartbeats.
        silent = broker["rxidle"] / _MICROSECONDS if broker["waitresp_cnt"] else 0.0
        self._heard_at = self._looked_at - silent

    def away(self) -> None:
        """Note that no broker can be reached, the coordinator included."""
        self._heard_at = -math.inf


_EPOCH = struct.Struct("=i")

PartitionId = tuple[str, int]
Committed = dict[PartitionId, Progress | None]
"""Maps each partition to its committed progress, or to None if nothing was committed for the partition."""

log = get_logger()


class GroupRefused(OperatorError):  # noqa: N818 - it names what happened
    """Kafka refused this client as a member of the group, and the client gave up."""

    def __init__(self, error: KafkaError) -> None:
        old = "not supported" in error.str()
        fix = "Kafka 4.0 or newer is needed, with consumer groups (KIP-848) switched on" if old else "see Kafka's log"
        super().__init__(f"Kafka refuses membership in the group: {error.str()}; {fix}")


class Listener(Protocol):
    """Receives rebalances, on the thread that calls `consume`."""

    def assigned(self, partitions: Sequence[PartitionId]) -> None:
        """Hold these partitions from now on. Must not do I/O."""
        ...

    def revoked(self, partitions: Sequence[PartitionId]) -> None:
        """Release these partitions. Another member gets them when this call returns."""
        ...

    def lost(self, partitions: Sequence[PartitionId]) -> None:
        """Drop these partitions, because another member has them already."""
        ...


@dataclass(frozen=True, slots=True)
class Contact:
    """The state of the connection to a source of records."""

    member: bool
    """True if the group admitted this client, possibly with no partitions."""
    silent_seconds: float
    """The time since the source last answered a request; infinite if no broker can be reached."""


class Source(Protocol):
    """A source of records with shared progress. A single thread calls all methods."""

    def join(self, listener: Listener) -> None:
        """Become a member."""
        ...

    def consume(self, limit: int, timeout_seconds: float) -> tuple[list[Record], list[tuple[str, int, int]]]:
        """Wait for records or a partition's end. Return the records, and each end as (topic, partition, offset).

        Raises GroupRefused.
        """
        ...

    def committed(self, partitions: Iterable[PartitionId], timeout_seconds: float) -> Committed:
        """Return the committed progress. Raises KafkaException."""
        ...

    def flow(self, pause: Sequence[PartitionId], resume: Sequence[tuple[str, int, int | None]]) -> bool:
        """Pause and resume partitions, seeking first if an offset is given.

        Return False if the caller must try again.
        """
        ...

    def assign_again(self, partitions: Sequence[PartitionId]) -> None:
        """Begin once more to read these partitions of the present assignment from their committed progress."""
        ...

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        """Return the partition's first offset and the offset after its last record; None if unknown."""
        ...

    def group_metadata(self) -> Any:
        """Return the member's identity, which a transaction needs to commit offsets for the group."""
        ...

    def contact(self) -> Contact:
        """Return the state of the connection. Sends no request."""
        ...

    def leave(self) -> None:
        """Release all partitions and end the membership. Calls `Listener.revoked`."""
        ...


class GroupSource:
    """A member of a consumer group (KIP-848) that reads committed records only.

    `topics` must exist. `config` holds librdkafka properties of the connection. The source calls `on_error` with broker
    errors. `prefetch_records` is the approximate number of records to fetch ahead.
    """

    def __init__(
        self,
        config: dict[str, Any],
        group: str,
        topics: Sequence[str],
        *,
        on_error: Callable[[KafkaError], None],
        prefetch_records: int = 10_000,
        make_consumer: Callable[[dict[str, Any]], Consumer] = Consumer,
    ) -> None:
        self._topics = list(topics)
        self._coordinator = Coordinator()
        self._on_error = on_error
        self._consumer = make_consumer(
            {
                # The wait is short, because a resumed partition waits until the present fetch ends.
                "fetch.wait.max.ms": 100,
                "fetch.queue.backoff.ms": 2,  # the pause between fetches while enough records are prefetched
                "queued.min.messages": prefetch_records,  # counts for all partitions, which share one queue
                "queued.max.messages.kbytes": 16_384,
                **config,
                "group.id": group,
                "group.protocol": "consumer",
                # `range` gives each member a share of each topic. The default, `uniform`, counts the partitions of all
                # topics alike: `uniform` moves fewer partitions, but gave one of three members a whole topic, even the
                # only busy one (Kafka 4.3.1, `python -m bench.assignors`).
                "group.remote.assignor": "range",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "max.poll.interval.ms": 900_000,
                "error_cb": self._heard_error,
                "stats_cb": self._coordinator.statistics,
                "statistics.interval.ms": STATISTICS_MS,
            }
        )

    def join(self, listener: Listener) -> None:
        """Subscribe; the first `consume` calls bring the assignment."""

        def told(what: Callable[[Sequence[PartitionId]], None]) -> Callable[[Any, list[TopicPartition]], None]:
            return lambda _, partitions: what([(p.topic, p.partition) for p in partitions])

        self._consumer.subscribe(
            self._topics,
            on_assign=told(listener.assigned),
            on_revoke=told(listener.revoked),
            on_lost=told(listener.lost),
        )

    def consume(self, limit: int, timeout_seconds: float) -> tuple[list[Record], list[tuple[str, int, int]]]:
        """Wait for the first message, then return all that are available. `consume(n, t)` alone would wait for n."""
        first = self._consumer.poll(timeout_seconds)
        if first is None:
            return [], []
        messages = [first, *(self._consumer.consume(limit - 1, 0) if limit > 1 else ())]
        records, ends = [], []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(_record(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                ends.append((message.topic(), message.partition(), message.offset()))
            elif error.fatal() or error.code() == KafkaError._FATAL:
                raise GroupRefused(error)
            else:
                self._on_error(error)  # the client reports a denied partition only here
        return records, ends

    def committed(self, partitions: Iterable[PartitionId], timeout_seconds: float) -> Committed:
        """Ask the group coordinator for the progress. The answer waits for open transactions of other workers."""
        asked = [TopicPartition(topic, number) for topic, number in partitions]
        if not asked:
            return {}
        found: Committed = {}
        for answer in self._consumer.committed(asked, timeout_seconds):
            if answer.error is not None:
                raise KafkaException(answer.error)
            found[answer.topic, answer.partition] = _decoded(answer)
        return found

    def flow(self, pause: Sequence[PartitionId], resume: Sequence[tuple[str, int, int | None]]) -> bool:
        """Pause and resume partitions. A pause discards prefetched records, so callers use hysteresis."""
        assigned = {(p.topic, p.partition) for p in self._consumer.assignment()}
        if not assigned.issuperset([*pause, *((topic, number) for topic, number, _ in resume)]):
            return False  # the assignment is still being made
        try:
            # Seeks may fail, so they precede the pauses: after a failure the caller assumes that nothing was paused,
            # and would never resume a paused partition.
            for topic, number, offset in resume:
                if offset is not None:
                    self._consumer.seek(TopicPartition(topic, number, offset))
            if pause:
                self._consumer.pause([TopicPartition(topic, number) for topic, number in pause])
            if resume:
                self._consumer.resume([TopicPartition(topic, number) for topic, number, _ in resume])
        except KafkaException:
            return False  # the client is still setting up a fetch, and cannot seek yet
        return True

    def assign_again(self, partitions: Sequence[PartitionId]) -> None:
        """Let the client ask again for the committed offsets of these partitions.

        If the coordinator refuses them, the client reads the partitions only after another assignment (librdkafka's
        `rd_kafka_assignment_apply_offsets`). The group does not notice that the client assigns them again.
        """
        assigned = {(p.topic, p.partition) for p in self._consumer.assignment()}
        again = [TopicPartition(*partition) for partition in partitions if partition in assigned]
        if again:
            self._consumer.incremental_unassign(again)
            self._consumer.incremental_assign(again)

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        """Return the two offsets from the last fetch if `cached`; else ask the broker, for at most a second."""
        try:
            found = self._consumer.get_watermark_offsets(TopicPartition(*partition), timeout=1.0, cached=cached)
        except KafkaException:
            return None
        if found is None or found[1] < 0:
            return None
        low, high = found
        return low, high

    def group_metadata(self) -> Any:
        """Return the member's id and epoch, which fence an expelled member."""
        return self._consumer.consumer_group_metadata()

    def contact(self) -> Contact:
        """Return the state, as read from the member's epoch and the client's statistics."""
        return Contact(is_admitted(bytes(self.group_metadata())), self._coordinator.silent_seconds)

    def leave(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _heard_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._coordinator.away()
        self._on_error(error)


_MARK = b"CGMDv2:"


def is_admitted(group_metadata: bytes) -> bool:
    """Return whether the coordinator has admitted the member, even with no partitions.

    The member's epoch (KIP-848) is above 0 then. No other fact shows the admission of a member without partitions: the
    client calls no callback, and its statistics say `init`. librdkafka shows the epoch only in the group metadata for
    transactions, behind a mark. Its next release may use another form: such a member counts as admitted, so that a
    worker does not stay unready for ever.
    """
    if not group_metadata.startswith(_MARK) or len(group_metadata) < len(_MARK) + _EPOCH.size:
        return True
    (epoch,) = _EPOCH.unpack_from(group_metadata, len(_MARK))
    return int(epoch) > 0


def _record(message: Any) -> Record:
    # `message` has the type Any, because the stubs make every part optional, although a record lacks none of them.
    headers, unreadable = headers_of(message)
    return Record(
        message.topic(),
        message.partition(),
        message.offset(),
        message.value() or b"",
        message.key(),
        headers,
        message.timestamp()[1],
        unreadable,
    )


def headers_of(message: Any) -> tuple[Headers | None, str | None]:
    """Return a message's headers, or None and the reason if the client cannot read the headers.

    A broker accepts any bytes as a header's name. The client raises SystemError for a name that is not UTF-8.
    """
    try:
        return message.headers(), None
    except (SystemError, UnicodeDecodeError):
        return None, "have a name that is not UTF-8"


def _decoded(answer: TopicPartition) -> Progress | None:
    if answer.offset < 0:
        return None
    try:
        return Progress.decode(answer.offset, answer.metadata or "")
    except UndecodableLedger as error:
        log.error(
            "The committed metadata cannot be read; handling every record from the committed offset on.",
            action="ledger-undecodable",
            topic=answer.topic,
            partition=answer.partition,
            offset=answer.offset,
            reason=str(error),
        )
        return Progress(answer.offset)
