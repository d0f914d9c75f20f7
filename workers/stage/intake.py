"""The source of a stage's records. `Intake` is the seam; `GroupIntake` is a KIP-848 consumer group."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from telemetry.logs import get_logger
from workers.stage.coordinator import STATISTICS_MS, Coordinator
from workers.stage.progress import Progress, UndecodableLedger
from workers.stage.record import Headers, Record

PartitionId = tuple[str, int]
Committed = dict[PartitionId, Progress | None]
"""The committed progress of each partition; None where nothing was ever committed."""

log = get_logger()


class GroupRefused(Exception):  # noqa: N818 - it names what happened
    """Kafka refused this client as a member of the group, and the client gave up."""

    def __init__(self, error: KafkaError) -> None:
        old = "not supported" in error.str()
        fix = "Kafka 4.0 or newer is needed, with consumer groups (KIP-848) switched on" if old else "see Kafka's log"
        super().__init__(f"Kafka refuses membership in the group: {error.str()}; {fix}")


class Listener(Protocol):
    """Is told of rebalances, on the thread that calls `consume`."""

    def assigned(self, partitions: Sequence[PartitionId]) -> None:
        """Hold these partitions from now on. Must not do I/O."""
        ...

    def revoked(self, partitions: Sequence[PartitionId]) -> None:
        """Release these partitions: another member gets them when this returns."""
        ...

    def lost(self, partitions: Sequence[PartitionId]) -> None:
        """Drop these partitions: another member has them already."""
        ...


@dataclass(frozen=True, slots=True)
class Contact:
    """The state of the connection to a source of records."""

    member: bool
    """Whether the group let this client in, be it with no partitions."""
    silent_seconds: float
    """How long the source has not answered a request; infinite where no broker can be reached."""


class Intake(Protocol):
    """A source of records with shared progress. One thread calls all of it."""

    def join(self, listener: Listener) -> None:
        """Become a member."""
        ...

    def consume(self, limit: int, timeout_seconds: float) -> tuple[list[Record], list[tuple[str, int, int]]]:
        """Return records, and the (topic, partition, offset) of each end reached, as soon as there is one.

        Raises GroupRefused.
        """
        ...

    def committed(self, partitions: Iterable[PartitionId], timeout_seconds: float) -> Committed:
        """Return the committed progress. Raises KafkaException."""
        ...

    def flow(self, pause: Sequence[PartitionId], resume: Sequence[tuple[str, int, int | None]]) -> bool:
        """Pause and resume fetching; resuming may seek to an offset first. False means: try again."""
        ...

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        """Return the first offset and the offset after the last one; None where they are not known."""
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


class GroupIntake:
    """A member of a consumer group (KIP-848) that reads committed records only.

    `topics` must exist. `config` are librdkafka properties of the connection. `on_error` is called with broker errors.
    `prefetch_records` is about the number of records that are fetched ahead.
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
                "fetch.wait.max.ms": 100,  # a resumed partition waits for the present fetch
                "fetch.queue.backoff.ms": 2,  # how long a fetch waits once enough is prefetched
                "queued.min.messages": prefetch_records,  # of all partitions: they share one queue
                "queued.max.messages.kbytes": 16_384,
                **config,
                "group.id": group,
                "group.protocol": "consumer",
                # Each member gets a share of each topic. The default, uniform, counts the partitions of all topics
                # alike: it moves fewer, and gave one of three members a whole topic, be it the only busy one
                # (Kafka 4.3.1, `python -m bench.assignors`).
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
        """Wait for the first record, then take those that are here: `consume(n, t)` alone would wait for all n."""
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
                self._on_error(error)  # such as a partition that may not be read; it is reported nowhere else
        return records, ends

    def committed(self, partitions: Iterable[PartitionId], timeout_seconds: float) -> Committed:
        """Ask the group coordinator. Waits for open transactions of other workers."""
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
            # Seeks come first, since they may fail: a pause that the caller does not note would never be undone.
            for topic, number, offset in resume:
                if offset is not None:
                    self._consumer.seek(TopicPartition(topic, number, offset))
            if pause:
                self._consumer.pause([TopicPartition(topic, number) for topic, number in pause])
            if resume:
                self._consumer.resume([TopicPartition(topic, number) for topic, number, _ in resume])
        except KafkaException:
            return False  # a fetch is being set up, and cannot be moved yet
        return True

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        """Return them from the last fetch where `cached`, else from the broker within a second."""
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
        """Return the state by the member's epoch and the client's statistics."""
        return Contact(_epoch(self.group_metadata()) > 0, self._coordinator.silent_seconds)

    def leave(self) -> None:
        """Close the consumer."""
        self._consumer.close()

    def _heard_error(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._coordinator.away()
        self._on_error(error)


def _epoch(group_metadata: Any) -> int:
    """Return the member's epoch: above 0 once the coordinator let it in, be it with no partitions (KIP-848).

    librdkafka shows it only in the bytes that it writes for a transaction: a mark of 7 bytes, then the epoch.
    """
    (epoch,) = struct.unpack_from("=i", group_metadata, len(b"CGMDv2:"))
    return int(epoch)


def _record(message: Any) -> Record:
    # Any: the stubs make every part optional, which holds for events only
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
    """Return a message's headers, or None and the reason where the client cannot read them.

    A broker takes any bytes as a header's name. The client reads it as UTF-8, and raises SystemError where it is not.
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
            "Committed metadata is not a ledger; handling every record from base on.",
            action="ledger-undecodable",
            topic=answer.topic,
            partition=answer.partition,
            offset=answer.offset,
            reason=str(error),
        )
        return Progress(answer.offset)
