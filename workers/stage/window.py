"""The window: the bounds on a stage's records, in number, bytes and span."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from workers.stage.ledger import Ledger
from workers.stage.load import Load
from workers.stage.parking import Lot
from workers.stage.partition import Partition, Phase
from workers.stage.party_queue import Parked, Ready
from workers.stage.progress import MAX_BITMAP, MAX_HOLES, MAX_SPAN
from workers.stage.record import Record
from workers.stage.sharing import Party, Place

NARROW = MAX_BITMAP * 3 // 4
"""A span of fewer offsets than this may have any number of holes."""
SPAN_HIGH, SPAN_LOW = MAX_SPAN * 3 // 4, MAX_SPAN // 2
HOLES_HIGH, HOLES_LOW = MAX_HOLES * 9 // 10, MAX_HOLES * 3 // 4
"""Bounds on a span above NARROW and on its holes: fetching pauses at either high bound, and resumes below both low
bounds.

The stage does not take a record that would exceed MAX_SPAN or MAX_HOLES. Such a record is fetched again later, which
is slow but does no harm."""
LEAST_PARKED = 512
"""The smallest capacity of a lot, in records.

A resumed partition may deliver after half a second; until then, half of the lot's records have to last.
"""
MOST_AT_ONCE = 2_000
"""Cap on the number of records to fetch in a round."""
FEW_AT_ONCE = 100
"""Cap on the number of records to fetch in a round while records are put off.

Most records after put-off records are not due soon, and a longer round would delay due records.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a stage's window."""

    records: int = 1024
    """Cap on the number of running records. `max(records, LEAST_PARKED)` further records may be parked, and as many
    again in each further place of a `Sharing`.
    """
    bytes: int = 256 * 1024 * 1024
    """Cap on the bytes of the values of taken, unsettled records. Put-off records are not included."""


class Window:
    """Decides which partitions to fetch from, and which parked records run next.

    The window uses hysteresis, since a pause discards prefetched records. Each place parks its records in its own
    `Lot`, so a flood in one place does not stop fetching for the others. While records wait in both the first and the
    later place, the later place gets `later_share` of the freed room. The spare place gets room while no record waits
    elsewhere.
    """

    def __init__(self, limits: Limits, later_share: float | None = None, load: Load | None = None) -> None:
        """`load` counts the stage's records and bytes. By default the window makes a new, empty load."""
        self.limits = limits
        self.load = load or Load()
        self._later_share = later_share or 0.0
        self._owed = 0.0
        """The number of records that the later place may still dispatch as its share."""
        count = 1 if later_share is None else len(Place)
        capacity, capacity_bytes = max(limits.records, LEAST_PARKED), limits.bytes // count
        self._lots = [Lot(capacity, capacity_bytes) for _ in range(count)]
        self.first = self._lots[Place.FIRST]
        self._heavy = False

    @property
    def parked(self) -> int:
        """The number of parked records, without put-off records."""
        return sum(lot.parked for lot in self._lots)

    def look(self, now: float) -> None:
        """Update the state of the lots. Call this once a round, before fetching. `now`: monotonic seconds."""
        for lot in self._lots:
            lot.look(now)

    @property
    def tight(self) -> bool:
        """True if the stage should skip fetching because a lot lacks room.

        Fetching is skipped so briefly that no rebalance is missed. The first place's lot is ignored while it overflows,
        because fetching then goes on. Other lots never overflow.
        """
        return any(lot.tight and not self._overflows(lot) for lot in self._lots)

    @property
    def heavy(self) -> bool:
        """True if records take too many bytes, so that the stage should fetch from no partition."""
        held = self.load.bytes - self.first.put_off_bytes
        high, low = held >= self.limits.bytes, held <= self.limits.bytes * 3 // 4
        self._heavy = high or (self._heavy and not low)
        return self._heavy

    @property
    def batch(self) -> int:
        """The number of records to fetch in a round; at least one, since fetching also brings rebalances.

        With several places, the number is always MOST_AT_ONCE, since the first place's lot may overflow.
        """
        if len(self._lots) > 1:
            return MOST_AT_ONCE
        return max(1, min(FEW_AT_ONCE if self.put_off else MOST_AT_ONCE, self.first.free))

    def park(self, partition: Partition, record: Record, party: Party) -> None:
        """Put a taken record into the parking queue of `party`."""
        self._lot_of(partition).add(partition, record, party)

    def surplus(self, most: int) -> list[Parked]:
        """Remove and return up to `most` records of the first place that have to wait in the later place."""
        return self.first.surplus(most) if self._overflows(self.first) else []

    def correct(self, partition: Partition, party: Party, cost: float) -> None:
        """Add to the cost of a party's drawn records, see `Lot.correct`."""
        self._lot_of(partition).correct(party, cost)

    def draw(self, room: int, ready: Ready) -> list[Parked]:
        """Remove and return up to `room` ready records: the later place's share, then each place in order."""
        drawn = self._later_due(room, ready)
        for place, lot in enumerate(self._lots):
            if place != Place.SPARE or not any(other.parked for other in self._lots[: Place.SPARE]):
                drawn += lot.draw(room - len(drawn), ready)
        return drawn

    def held_back(self, partition: Partition) -> None:
        """Note that the handler had room for a record of the partition, whose party has used up its share."""
        self._lot_of(partition).held_back()

    def next_of(self, partition: Partition) -> Record:
        """Return the partition's next parked record. Raises KeyError if no record is parked."""
        return self._lot_of(partition).first(partition)

    def release(self, partition: Partition) -> list[Record]:
        """Remove and return all parked records of the partition."""
        return self._lot_of(partition).remove(partition)

    @property
    def put_off(self) -> Collection[Partition]:
        """Partitions whose records are put off until the first record is due.

        A window with several places puts off no records.
        """
        return self.first.put_off

    def put_off_until_due(self, partition: Partition, *, soon: bool) -> None:
        """Put off a partition's parked and later records: they take no room until due. `cut` limits put-off records."""
        self.first.put_off_until_due(partition, soon=soon)

    def bring_back(self, partition: Partition) -> None:
        """Bring back a partition's records: they are no longer put off, and wait for room again."""
        self.first.bring_back(partition)

    def cut(self) -> list[tuple[Partition, list[Record]]]:
        """Remove and return put-off records beyond the bounds, see `Lot.cut`."""
        return self.first.cut()

    def wants_pause(self, partition: Partition) -> bool:
        """Return whether the stage should not fetch from the partition now."""
        if partition.rewind_to is not None and not partition.paused:
            return True  # the partition has to pause, because the seek happens at the resume
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
        lot = self._lot_of(partition)
        return self.heavy or (lot.full and not self._overflows(lot))

    def _overflows(self, lot: Lot) -> bool:
        return len(self._lots) > 1 and lot is self.first and lot.gives_way

    def _lot_of(self, partition: Partition) -> Lot:
        return self._lots[partition.place]

    def _later_due(self, room: int, ready: Ready) -> list[Parked]:
        if room <= 0 or len(self._lots) == 1:
            return []
        later = self._lots[Place.LATER]
        if not (self.first.parked and later.parked):
            self._owed = 0.0
            return []
        self._owed += room * self._later_share
        drawn = later.draw(int(self._owed), ready)
        self._owed = min(1.0, self._owed - len(drawn))
        return drawn


def _is_wide(ledger: Ledger, *, paused: bool) -> bool:
    """Return whether a span is near a commit's bounds. For hysteresis, the bounds of a `paused` partition are lower."""
    if ledger.span < NARROW:
        return False
    span, holes = (SPAN_LOW, HOLES_LOW) if paused else (SPAN_HIGH, HOLES_HIGH)
    return ledger.span >= span or ledger.holes >= holes
