"""The due queue: records of tiers, until they are due.

A partition of a tier is a queue: while its first record is not due, no later one is. So a partition's records wait here
in the order of their offsets, apart from the records that wait for the window, and take none of its room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from telemetry.clock import Clock
from workers.stage.defects import Defects
from workers.stage.fair_queue import OWN_BYTES
from workers.stage.partition import Partition
from workers.stage.record import Record
from workers.stage.sharing import Backpressure

SOON_SECONDS = 10.0
"""If a partition's first record is due within this time, the stage also fetches the records after it. If the first is
due later, the stage does not fetch from the partition, and gives back its records first when room is short."""
LOOK_AGAIN_SECONDS = 0.5
"""The longest time between two checks of a record that is not due.

The check is repeated because an operator may set the clock.
"""
AHEAD_RECORDS = 2_048
"""Cap on the records of a partition. If only one record were kept, the stage would seek and fetch the partition again
for each due record."""


@dataclass(slots=True, eq=False)
class _Tier:
    """The records of one partition."""

    records: deque[Record] = field(default_factory=deque)
    bytes: int = 0
    soon: bool = True
    """True if the first record is due within SOON_SECONDS."""
    look_again: float = 0.0
    """The monotonic time at which to check the first record again."""
    resume_at: int | None = None
    """None, or the number of records at which the stage fetches from the partition again."""

    @property
    def is_paused(self) -> bool:
        """True if the stage should not fetch from the partition now."""
        return not self.soon or self.resume_at is not None

    def pop(self, *, last: bool = False) -> Record:
        """Remove and return the first or the last record."""
        record = self.records.pop() if last else self.records.popleft()
        self.bytes -= OWN_BYTES + len(record.value)
        if self.resume_at is not None and len(self.records) <= self.resume_at:
            self.resume_at = None
        return record


class DueQueue:
    """The records of a stage that are not due, bounded in bytes. Only the Kafka thread calls the methods."""

    def __init__(self, pace: Backpressure, capacity_bytes: int, defects: Defects, clock: Clock) -> None:
        self._pace = pace
        self._capacity_bytes = capacity_bytes
        self._defects = defects
        self._clock = clock
        self._tiers: dict[Partition, _Tier] = {}

    def __len__(self) -> int:
        return sum(len(tier.records) for tier in self._tiers.values())

    @property
    def value_bytes(self) -> int:
        """The size of all values."""
        return sum(tier.bytes - OWN_BYTES * len(tier.records) for tier in self._tiers.values())

    def keeps(self, partition: Partition, record: Record) -> bool:
        """Keep a record that was just taken if it is not due, and return whether it is kept."""
        tier = self._tiers.get(partition)
        if tier is None:
            left = self._seconds_left(record)
            if left <= 0:
                return False
            tier = self._tiers[partition] = _Tier()
            self._put_off(tier, left)
        tier.records.append(record)
        tier.bytes += OWN_BYTES + len(record.value)
        return True

    def was_never_due(self, record: Record) -> bool:
        """Return True if no owner can have begun the record, because it is not due and its timestamp is in the past.

        A timestamp in the future proves nothing: each owner measures the wait from the time at which it read the
        record.
        """
        return self._seconds_left(record) > 0 and record.timestamp_ms <= self._clock.time() * 1000

    def due(self, most: int) -> Iterator[tuple[Partition, Record]]:
        """Remove and yield up to `most` records that are due now."""
        now = self._clock.monotonic()
        for partition, tier in list(self._tiers.items()):
            while now >= tier.look_again and most > 0:
                left = self._seconds_left(tier.records[0])
                if left > 0:
                    self._put_off(tier, left)
                    break
                most -= 1
                tier.soon = True
                yield partition, tier.pop()
                if not tier.records:
                    del self._tiers[partition]
                    break

    def is_paused(self, partition: Partition) -> bool:
        """Return whether the stage should not fetch from the partition now."""
        tier = self._tiers.get(partition)
        return tier is not None and tier.is_paused

    def cut(self) -> list[tuple[Partition, list[Record]]]:
        """Remove and return records beyond the bounds. Each list begins with the partition's last record.

        AHEAD_RECORDS bounds each partition, and the capacity all together. Partitions that are not due soon lose
        records first, and then the partitions that hold most.
        """
        found = []
        for partition, tier in self._tiers.items():
            if len(tier.records) > AHEAD_RECORDS:
                found.append((partition, self._keep(tier, AHEAD_RECORDS)))
        while sum(tier.bytes for tier in self._tiers.values()) > self._capacity_bytes:
            several = [entry for entry in self._tiers.items() if len(entry[1].records) > 1]
            late = [entry for entry in several if not entry[1].soon]
            if not several:
                break
            partition, tier = max(late or several, key=lambda entry: entry[1].bytes)
            found.append((partition, self._keep(tier, len(tier.records) // 2 if tier.soon else 1)))
        return found

    def remove(self, partition: Partition) -> list[Record]:
        """Remove and return all records of a partition."""
        tier = self._tiers.pop(partition, None)
        return [] if tier is None else list(tier.records)

    def _keep(self, tier: _Tier, most: int) -> list[Record]:
        removed = [tier.pop(last=True) for _ in range(len(tier.records) - most)]
        tier.resume_at = most // 2
        return removed

    def _put_off(self, tier: _Tier, left: float) -> None:
        """Note that the first record is due after `left` seconds."""
        was_soon, tier.soon = tier.soon, left <= SOON_SECONDS
        if tier.soon and not was_soon and len(tier.records) > AHEAD_RECORDS // 2:
            tier.resume_at = AHEAD_RECORDS // 2  # enough records are here already
        tier.look_again = self._clock.monotonic() + min(left, LOOK_AGAIN_SECONDS)

    def _seconds_left(self, record: Record) -> float:
        """Return the seconds until a record is due; 0 or less if the record is due now."""
        try:
            due_ms = self._pace.due_ms(record)
        except Exception as error:
            self._defects.met("due_ms", record, error)
            due_ms = None
        return 0.0 if due_ms is None else due_ms / 1000 - self._clock.time()
