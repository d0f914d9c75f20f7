"""The window: how much a stage takes on at once, in records, bytes and span."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from workers.stage.ledger import Ledger
from workers.stage.load import Load
from workers.stage.parking import Lot, Parked, Ready
from workers.stage.partition import Partition, Phase
from workers.stage.progress import MAX_BITMAP, MAX_HOLES, MAX_SPAN
from workers.stage.record import Record
from workers.stage.sharing import Party

NARROW = MAX_BITMAP * 3 // 4
"""Offsets. A narrower span may have any number of holes."""
SPAN_HIGH, SPAN_LOW = MAX_SPAN * 3 // 4, MAX_SPAN // 2
HOLES_HIGH, HOLES_LOW = MAX_HOLES * 9 // 10, MAX_HOLES * 3 // 4
"""Bounds of a wider span. Records that come in beyond them are fetched again, which is slow but does no harm."""
LEAST_PARKED = 512
"""Records. A resumed partition delivers after up to half a second; half of these records have to last so long."""
MOST_AT_ONCE = 2_000
"""The most records to ask for."""
FEW_AT_ONCE = 100
"""The most records to ask for while some are put off: of thousands behind them, a few may be due soon."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a stage's window."""

    records: int = 1024
    """Records that the handler has at once; as many again, and at least LEAST_PARKED, may be parked behind them.

    As many of the later place may be parked too, where there is one.
    """
    bytes: int = 256 * 1024 * 1024
    """Bytes of record values that are taken and not settled, without those that are put off until they are due."""


class Window:
    """Says which partitions to fetch from, and which parked records come next.

    Uses hysteresis, since a pause discards prefetched records. Records of a later place have a lot of their own. So
    however many records of the first places wait, those of the later place are fetched, and get their `later_share` of
    the places that become free.
    """

    def __init__(self, limits: Limits, later_share: float | None = None, load: Load | None = None) -> None:
        """`load` is the stage's; without one the window has one of its own."""
        self.limits = limits
        self.load = load or Load()
        self._later_share = later_share or 0.0
        self._owed = 0.0
        """Places that the later place is still owed."""
        count = 1 if later_share is None else 2
        capacity, capacity_bytes = max(limits.records, LEAST_PARKED), limits.bytes // count
        self._lots = [Lot(capacity, capacity_bytes) for _ in range(count)]
        self.first, self.later = self._lots[0], self._lots[-1]
        self._heavy = False

    @property
    def parked(self) -> int:
        """Records that wait for a place, without those that are put off."""
        return sum(lot.parked for lot in self._lots)

    def look(self, now: float) -> None:
        """Look at the lots once a round, before records are fetched. `now`: monotonic seconds."""
        for lot in self._lots:
            lot.look(now)

    @property
    def tight(self) -> bool:
        """Whether to fetch no records for a moment, too short for rebalances to go unheard.

        The first places overflow instead where several parties wait; the later place never overflows.
        """
        overflows = self.first.contended and self.first.can_give_way
        return (self.first.tight and not overflows) or self.later.tight

    @property
    def heavy(self) -> bool:
        """Whether no partition is to be fetched from, as the records take too many bytes."""
        held = self.load.bytes - self.first.put_off_bytes
        high, low = held >= self.limits.bytes, held <= self.limits.bytes * 3 // 4
        self._heavy = high or (self._heavy and not low)
        return self._heavy

    @property
    def batch(self) -> int:
        """How many records to ask for; never less than one, or rebalances would go unheard.

        MOST_AT_ONCE with a later place, since the lot that is full may be the one that overflows.
        """
        if self.later is not self.first:
            return MOST_AT_ONCE
        return max(1, min(FEW_AT_ONCE if self.put_off else MOST_AT_ONCE, self.first.free))

    def park(self, partition: Partition, record: Record, party: Party) -> None:
        """Let a record that was taken wait."""
        self._lot_of(partition).add(partition, record, party)

    def surplus(self, partitions: Iterable[Partition]) -> list[Parked]:
        """Take out the records beyond their party's share, where another party waits for the places.

        Returns none where one party is alone: no other is parked, and none was seen further on in `partitions`.
        """
        lot = self.first
        if lot is self.later or not lot.crowded:
            return []
        if not (lot.contended or any(partition.foreseen for partition in partitions)):
            return []
        return lot.surplus()

    def draw(self, room: int, ready: Ready) -> list[Parked]:
        """Take out up to `room` parked records that are ready: the later place's share, and from the first places."""
        if self.later is self.first:
            return self.first.draw(room, ready)
        drawn = self._later_due(room, ready)
        drawn += self.first.draw(room - len(drawn), ready)
        return drawn + self.later.draw(room - len(drawn), ready)

    def next_of(self, partition: Partition) -> Record:
        """Return a partition's next parked record. Raises KeyError where it has none."""
        return self._lot_of(partition).first(partition)

    def release(self, partition: Partition) -> list[Record]:
        """Take out a partition's parked records."""
        return self._lot_of(partition).remove(partition)

    @property
    def put_off(self) -> Collection[Partition]:
        """Partitions whose first record was not due when it was looked at. Empty where there is a later place."""
        return self.first.put_off

    def put_off_until_due(self, partition: Partition, *, soon: bool) -> None:
        """Let a partition's parked and coming records wait without taking room; see `cut`."""
        self.first.put_off_until_due(partition, soon=soon)

    def bring_back(self, partition: Partition) -> None:
        """Let a partition's parked records wait for room, and no longer for their time."""
        self.first.bring_back(partition)

    def cut(self) -> list[tuple[Partition, list[Record]]]:
        """Take out the records that are too many to be put off: of each partition, the last one first."""
        return self.first.cut()

    def wants_pause(self, partition: Partition) -> bool:
        """Return whether a partition is not to be fetched from now."""
        if partition.rewind_to is not None and not partition.paused:
            return True  # a partition is sought when it is resumed
        if self._is_full_for(partition) or self.first.is_cut(partition) or partition.phase is not Phase.OPEN:
            return partition.phase is not Phase.ASSIGNED
        return _is_wide(partition.ledger, paused=partition.paused)

    def changes(self, partitions: Iterable[Partition]) -> tuple[list[Partition], list[Partition]]:
        """Return the partitions to pause and those to resume."""
        pause, resume = [], []
        for partition in partitions:
            wanted = self.wants_pause(partition)
            if wanted and not partition.paused:
                pause.append(partition)
            elif partition.paused and not wanted:
                resume.append(partition)
        return pause, resume

    def _is_full_for(self, partition: Partition) -> bool:
        if self.heavy:
            return True
        lot = self._lot_of(partition)
        if lot is self.later:
            return lot.full
        return lot.full and not (lot.can_give_way and (lot.contended or partition.foreseen))

    def _lot_of(self, partition: Partition) -> Lot:
        return self.later if partition.later else self.first

    def _later_due(self, room: int, ready: Ready) -> list[Parked]:
        if room <= 0:
            return []
        if not (self.first.parked and self.later.parked):
            self._owed = 0.0
            return []
        self._owed += room * self._later_share
        drawn = self.later.draw(int(self._owed), ready)
        self._owed = min(1.0, self._owed - len(drawn))
        return drawn


def _is_wide(ledger: Ledger, *, paused: bool) -> bool:
    """Return whether a partition's span comes near the committable bounds; with hysteresis where it is paused."""
    if ledger.span < NARROW:
        return False
    span, holes = (SPAN_LOW, HOLES_LOW) if paused else (SPAN_HIGH, HOLES_HIGH)
    return ledger.span >= span or ledger.holes >= holes
