"""Whether somebody else waits where a stage has not read yet, because one party alone fills its lot.

Without it a tenant's flood would keep everybody out who comes after it; and if its records were deferred whenever they
fill the lot, a tenant who is alone would be deferred for nobody's sake. So, where one party has filled the lot for
a second, the rest of those partitions is read once more, by a consumer of its own that keeps and commits nothing. When
it meets another party the partition goes on up to there, and what stands in between is deferred.
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
"""For so long one party fills the lot before anything is read ahead: whoever waits that long may wait for longer."""
RECORDS_A_LOOK = 250
"""About a millisecond of the Kafka thread."""
PREFETCH_KIB = 4_096

log = get_logger()


class Scout:
    """Reads ahead in partitions, and says where it met a party that is not the familiar one. The Kafka thread owns it.

    `config` are librdkafka properties of the connection. It is no member of the group, whose name it only reads under.
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
        """The offset to read on from, of partitions in which only the familiar party was met."""

    def aim(self, places: Mapping[PartitionId, int], familiar: bytes) -> None:
        """Read these partitions, from these offsets on or from where reading stopped."""
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
        """What was met since: the last offset of another party, by partition. Does not wait."""
        if self._consumer is None or not self._aims:
            return {}
        met: dict[PartitionId, int] = {}
        # Any: the stubs make every part optional, which holds for events only
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
        """Read nothing for now."""
        if self._consumer is not None and self._aims:
            self._consumer.unassign()
            self._aims = frozenset()

    def forget(self) -> None:
        """Read again what was read."""
        self.rest()
        self._read.clear()

    def close(self) -> None:
        """Close the consumer."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


class Lookahead:
    """Decides when to look ahead, and notes in the partitions what was seen there."""

    def __init__(self, scout: Scout, clock: Clock) -> None:
        self._scout = scout
        self._clock = clock
        self._filled_since: float | None = None
        self._filled_last = 0.0
        self._generation = 0

    def look(self, lot: Lot, partitions: Iterable[Partition]) -> None:
        """Once a round. `partitions` are all that the stage has."""
        if not self._is_filled(lot):
            self._scout.rest()
            return
        held = {partition.id: partition for partition in partitions if partition.phase is Phase.OPEN}
        newest = max((partition.generation for partition in held.values()), default=0)
        if newest != self._generation:
            self._generation = newest
            self._scout.forget()  # what was seen is noted in partitions that may be gone since
        if lot.filler is not None:
            blocked = {place: p.ledger.next_offset for place, p in held.items() if _is_blocked(p)}
            self._scout.aim(blocked, lot.filler)
        for place, offset in self._scout.look().items():
            partition = held.get(place)
            if partition is not None and not partition.ledger.is_done(offset):
                self._foresee(partition, offset)

    def close(self) -> None:
        """Look ahead no more."""
        self._scout.close()

    def _foresee(self, partition: Partition, offset: int) -> None:
        if not partition.foreseen:
            log.info(
                "Another tenant is waiting behind this one; deferring the records in between.",
                action="lookahead-found-others",
                topic=partition.topic,
                partition=partition.number,
                records=offset - partition.ledger.next_offset,
            )
        partition.foresee(offset)

    def _is_filled(self, lot: Lot) -> bool:
        """Whether the lot was filled again and again for a while."""
        now = self._clock.monotonic()
        if lot.full:
            self._filled_last = now
            if self._filled_since is None:
                self._filled_since = now
        elif now - self._filled_last > PATIENCE_SECONDS:
            self._filled_since = None
        return self._filled_since is not None and now - self._filled_since >= PATIENCE_SECONDS


def _is_blocked(partition: Partition) -> bool:
    """Whether there may be records that are not read because the lot is full."""
    return partition.paused and not partition.later and not partition.foreseen
