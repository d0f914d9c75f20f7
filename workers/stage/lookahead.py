"""Lookahead: finds out if another party waits in the partitions behind the party that fills the lot alone.

Without lookahead, one tenant's flood would keep out every later tenant. A stage that deferred the flood whenever the
lot is full would also defer a sole tenant's records, to no tenant's benefit. So once one party has filled the lot for a
second, a separate consumer reads on in the blocked partitions. The consumer keeps and commits nothing. When the
consumer meets another party's record, the stage reads on up to this record and defers the records in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition

from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.stage.intake import PartitionId, headers_of
from workers.stage.parking import Lot
from workers.stage.partition import Partition, Phase
from workers.stage.sharing import Party, Sharing

PATIENCE_SECONDS = 1.0
"""The time for which one party fills the lot before the stage reads ahead. Other tenants may wait for this time."""
RECORDS_A_LOOK = 250
"""The most records to read ahead in a round. Reading them takes about a millisecond of the Kafka thread."""
PREFETCH_KIB = 4_096

log = get_logger()


class Scout:
    """Reads ahead in partitions that one party fills, and reports the records of other parties.

    `config` holds librdkafka properties of the connection. The consumer has the group's name but does not join the
    group. Only the Kafka thread calls the methods.
    """

    def __init__(self, config: Mapping[str, Any], group: str, sharing: Sharing) -> None:
        self._config = {
            **config,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "queued.max.messages.kbytes": PREFETCH_KIB,
            "fetch.queue.backoff.ms": 20,
        }
        self._sharing = sharing
        self._consumer: Consumer | None = None
        self._familiar: Party = None
        self._aims: frozenset[PartitionId] = frozenset()
        self._read: dict[PartitionId, int] = {}
        """By partition, the offset at which reading goes on."""

    def aim(self, places: Mapping[PartitionId, int], familiar: bytes) -> None:
        """Read these partitions, from these offsets or from the offsets where reading stopped, if higher.

        `familiar` is the party that fills the lot.
        """
        if familiar != self._familiar:
            self._familiar, self._aims = familiar, frozenset()
            self._read.clear()
        if places.keys() <= self._aims:
            return
        self._aims = frozenset(places)
        if self._consumer is None:
            self._consumer = Consumer(self._config)
        starts = {place: max(offset, self._read.get(place, 0)) for place, offset in places.items()}
        self._consumer.assign([TopicPartition(*place, offset) for place, offset in starts.items()])

    def look(self) -> dict[PartitionId, int]:
        """Read some records without waiting. Return, by partition, the last of their offsets of another party."""
        if self._consumer is None or not self._aims:
            return {}
        met: dict[PartitionId, int] = {}
        # Any: the stubs make every part optional, but only events lack parts
        messages: list[Any] = self._consumer.consume(RECORDS_A_LOOK, 0)
        for message in messages:
            error = message.error()
            if error is None:
                place = message.topic(), message.partition()
                self._read[place] = message.offset() + 1
                if self._sharing.party(headers_of(message)[0]) != self._familiar:
                    met[place] = message.offset()
            elif error.code() != KafkaError._PARTITION_EOF:
                log.warning("Reading ahead failed; trying again.", action="lookahead-failed", reason=error.name())
        return met

    def rest(self) -> None:
        """Stop reading for now."""
        if self._consumer is not None and self._aims:
            self._consumer.unassign()
            self._aims = frozenset()

    def forget(self) -> None:
        """Stop reading, and forget the offsets where reading stopped."""
        self.rest()
        self._read.clear()

    def close(self) -> None:
        """Close the consumer."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


class Lookahead:
    """Decides when to look ahead, and notes in each partition the offset at which another party waits."""

    def __init__(self, scout: Scout, clock: Clock) -> None:
        self._scout = scout
        self._clock = clock
        self._filled_since: float | None = None
        self._filled_last = 0.0
        self._generation = 0

    def look(self, lot: Lot, partitions: Iterable[Partition]) -> None:
        """Look ahead if one party has filled the lot. Call this once a round, with all held partitions."""
        if not self._is_filled(lot):
            self._scout.rest()
            return
        held = {partition.id: partition for partition in partitions if partition.phase is Phase.OPEN}
        newest = max((partition.generation for partition in held.values()), default=0)
        if newest != self._generation:
            self._generation = newest
            self._scout.forget()  # found offsets may be noted in `Partition` objects that are gone
        if lot.filler is not None:
            blocked = {place: p.ledger.next_offset for place, p in held.items() if _is_blocked(p)}
            self._scout.aim(blocked, lot.filler)
        for place, offset in self._scout.look().items():
            partition = held.get(place)
            if partition is not None and not partition.ledger.is_done(offset):
                self._note_others(partition, offset)

    def close(self) -> None:
        """Close the consumer."""
        self._scout.close()

    def _note_others(self, partition: Partition, offset: int) -> None:
        if not partition.has_others_ahead:
            log.info(
                "Another tenant is waiting behind this one; deferring the records in between.",
                action="lookahead-found-others",
                topic=partition.topic,
                partition=partition.number,
                records=offset - partition.ledger.next_offset,
            )
        partition.note_others(offset)

    def _is_filled(self, lot: Lot) -> bool:
        """Return whether the lot has been full for PATIENCE_SECONDS, apart from shorter breaks."""
        now = self._clock.monotonic()
        if lot.full:
            self._filled_last = now
            if self._filled_since is None:
                self._filled_since = now
        elif now - self._filled_last > PATIENCE_SECONDS:
            self._filled_since = None
        return self._filled_since is not None and now - self._filled_since >= PATIENCE_SECONDS


def _is_blocked(partition: Partition) -> bool:
    """Return whether the partition may have unread records because the lot is full."""
    return partition.paused and not partition.later and not partition.has_others_ahead
