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
"""Offsets: a narrower span may have any holes."""
SPAN_HIGH, SPAN_LOW = MAX_SPAN * 3 // 4, MAX_SPAN // 2
HOLES_HIGH, HOLES_LOW = MAX_HOLES * 9 // 10, MAX_HOLES * 3 // 4
"""Of a wider one. What came in beyond is fetched again, which is slow but does no harm."""
LEAST_PARKED = 512
"""Records. A resumed partition delivers after up to half a second; half of these have to last as long."""
MOST_AT_ONCE = 2_000
"""Records to ask for."""
FEW_AT_ONCE = 100
"""The same where some are put off: those behind them come by the thousand, and what is among them is to begin soon."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a stage's window."""

    records: int = 1024
    """Records that the handler has at once; as many again, and at least LEAST_PARKED, may be parked behind them.

    Where there is a later place, as many of it too.
    """
    bytes: int = 256 * 1024 * 1024
    """Bytes of record values that are taken and not settled, those aside that are put off until they are due."""


class Window:
    """Says which partitions to fetch from, and which parked records come next.

    With hysteresis, since a pause throws away what was prefetched. Where there is a later place its records have a lot
    of their own, so that those of the first places, however many, keep them neither from being fetched nor from their
    `later_share` of the places that become free.
    """

    def __init__(self, limits: Limits, later_share: float | None = None, load: Load | None = None) -> None:
        """`load` is the stage's; without one the window has one of its own."""
        self.limits = limits
        self.load = load or Load()
        self._later_share = later_share or 0.0
        self._owed = 0.0
        """Places that are the later place's due, and were not given to it yet."""
        count = 1 if later_share is None else 2
        capacity, capacity_bytes = max(limits.records, LEAST_PARKED), limits.bytes // count
        self._lots = [Lot(capacity, capacity_bytes) for _ in range(count)]
        self.first, self.later = self._lots[0], self._lots[-1]
        self._heavy = False

    @property
    def parked(self) -> int:
        """Taken, and waiting for a place; those aside that were put off."""
        return sum(lot.parked for lot in self._lots)

    def look(self, now: float) -> None:
        """Once a round, before anything is fetched. `now`: monotonic seconds."""
        for lot in self._lots:
            lot.look(now)

    @property
    def tight(self) -> bool:
        """Whether to fetch nothing for a moment, which is too short for rebalances to go unheard.

        The first places overflow instead where several parties wait; the later one never does.
        """
        overflows = self.first.contended and self.first.can_give_way
        return (self.first.tight and not overflows) or self.later.tight

    @property
    def heavy(self) -> bool:
        """Whether nothing more is to be taken for its bytes, whatever the partition."""
        held = self.load.bytes - self.first.put_off_bytes
        high, low = held >= self.limits.bytes, held <= self.limits.bytes * 3 // 4
        self._heavy = high or (self._heavy and not low)
        return self._heavy

    @property
    def batch(self) -> int:
        """How many records to ask for; never less than one, or rebalances would go unheard.

        Where there is a later place as many as ever, since a lot that is full may be the one that overflows.
        """
        if self.later is not self.first:
            return MOST_AT_ONCE
        return max(1, min(FEW_AT_ONCE if self.put_off else MOST_AT_ONCE, self.first.free))

    def park(self, partition: Partition, record: Record, party: Party) -> None:
        """A record that was taken waits from now on."""
        self._lot_of(partition).add(partition, record, party)

    def surplus(self, partitions: Iterable[Partition]) -> list[Parked]:
        """Take out what is beyond its party's share, where anything waits for a place.

        Nothing is where nobody else waits: nobody is parked, and nobody was seen further on in one of `partitions`.
        """
        lot = self.first
        if lot is self.later or not lot.crowded:
            return []
        if not (lot.contended or any(partition.foreseen for partition in partitions)):
            return []
        return lot.surplus()

    def draw(self, room: int, ready: Ready) -> list[Parked]:
        """Take out up to `room` parked records that are ready: from the first places, and the later one's share."""
        if self.later is self.first:
            return self.first.draw(room, ready)
        drawn = self._later_due(room, ready)
        drawn += self.first.draw(room - len(drawn), ready)
        return drawn + self.later.draw(room - len(drawn), ready)

    def next_of(self, partition: Partition) -> Record:
        """A partition's parked record that comes next. Raises KeyError where it has none."""
        return self._lot_of(partition).first(partition)

    def release(self, partition: Partition) -> list[Record]:
        """Take out a partition's parked records."""
        return self._lot_of(partition).remove(partition)

    @property
    def put_off(self) -> Collection[Partition]:
        """Partitions whose first record was not due when it was looked at. Only where there is no later place."""
        return self.first.put_off

    def put_off_until_due(self, partition: Partition, *, soon: bool) -> None:
        """Have a partition's parked records, and those that come, wait in nobody's room; see `cut`."""
        self.first.put_off_until_due(partition, soon=soon)

    def bring_back(self, partition: Partition) -> None:
        """A partition's parked records wait for room, and no longer for their time."""
        self.first.bring_back(partition)

    def cut(self) -> list[tuple[Partition, list[Record]]]:
        """Take out what may not be put off here: of each partition, the last one first."""
        return self.first.cut()

    def wants_pause(self, partition: Partition) -> bool:
        """Whether a partition is not to be fetched from now."""
        if partition.rewind_to is not None and not partition.paused:
            return True  # seeking is done on the way from paused to resumed
        if self._is_full_for(partition) or self.first.is_cut(partition) or partition.phase is not Phase.OPEN:
            return partition.phase is not Phase.ASSIGNED
        return _is_wide(partition.ledger, paused=partition.paused)

    def changes(self, partitions: Iterable[Partition]) -> tuple[list[Partition], list[Partition]]:
        """Which partitions to pause and which to resume."""
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
    """Whether a partition's span comes near what can be committed, or, once it did, has not become narrower since."""
    if ledger.span < NARROW:
        return False
    span, holes = (SPAN_LOW, HOLES_LOW) if paused else (SPAN_HIGH, HOLES_HIGH)
    return ledger.span >= span or ledger.holes >= holes
