"""The window: the bounds on a stage's records, in number, bytes and span.

`RemoteShare` bounds the records that may wait for servers outside the fleet, so that no party fills the window. The
handler cannot end such a record before the server answers. A window full of one party's hung records would stop all
other parties. So a quarter of the window is a reserve. When only the reserve is free, a party may begin such a record
only if it runs fewer such records than the window has free places (dynamic thresholds, Choudhury and Hahne 1998).

Many parties with few such records each could still fill the reserve. So all these records together leave half of the
reserve to records that wait for no server. Within this bound, a sole party gets three quarters of the window, and a
party that comes later gets half of the places that are left. Records that wait for no server may take any place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from workers.stage.due_queue import DueQueue
from workers.stage.fair_queue import FairQueue, Queued, Ready
from workers.stage.ledger import Ledger
from workers.stage.partition import Load, Partition, Phase
from workers.stage.progress import MAX_BITMAP, MAX_HOLES, MAX_SPAN
from workers.stage.record import Party, Record
from workers.stage.sharing import Place

NARROW = MAX_BITMAP * 3 // 4
"""A span of fewer offsets than this may have any number of holes."""
SPAN_HIGH, SPAN_LOW = MAX_SPAN * 3 // 4, MAX_SPAN // 2
HOLES_HIGH, HOLES_LOW = MAX_HOLES * 9 // 10, MAX_HOLES * 3 // 4
"""Bounds on a span above NARROW and on its holes: fetching pauses at either high bound, and resumes below both low
bounds.

The stage does not take a record that would exceed MAX_SPAN or MAX_HOLES. Such a record is fetched again later, which
is slow but does no harm."""
LEAST_BUSY = 512
"""A full queue of a stage with a smaller window is not slow if it gives out this number of records in SLOW_SECONDS."""
MOST_AT_ONCE = 2_000
"""Cap on the number of records to fetch in a round."""
FEW_AT_ONCE = 100
"""Cap on the number of records to fetch in a round while records are not due.

Most records after these are not due soon, and a longer round would delay due records.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a stage's window."""

    records: int = 1024
    """Cap on the number of running records. Further records wait in the queues, which are bounded in bytes."""
    bytes: int = 256 * 1024 * 1024
    """Cap on the bytes of the values of taken, unsettled records. Records that are not due are not included."""


class Window:
    """Decides which partitions to fetch from, and which queued records run next.

    The window uses hysteresis, since a pause discards prefetched records. Each place has its own `FairQueue`, so a
    flood in one place does not stop fetching for the others. While records wait in both the first and the later place,
    the later place gets `later_share` of the freed room. The spare place gets room while no record waits elsewhere.
    """

    def __init__(
        self, limits: Limits, later_share: float | None = None, load: Load | None = None, due: DueQueue | None = None
    ) -> None:
        """`load` counts the stage's records and bytes; by default the window makes a new, empty load.

        `due` holds the records of a paced stage that are not due.
        """
        self.limits = limits
        self.load = load or Load()
        self._due = due
        self._later_share = later_share or 0.0
        self._owed = 0.0
        """The number of records that the later place may still dispatch as its share."""
        count = 1 if later_share is None else len(Place)
        self._queues = [FairQueue(limits.bytes // count, max(limits.records, LEAST_BUSY)) for _ in range(count)]
        self.first = self._queues[Place.FIRST]
        self._heavy = False

    @property
    def queued(self) -> int:
        """The number of queued records, without those that are not due."""
        return sum([queue.records for queue in self._queues])

    def look(self, now: float) -> None:
        """Update the state of the queues. Call this once a round, before fetching. `now`: monotonic seconds."""
        for queue in self._queues:
            queue.look(now)

    @property
    def tight(self) -> bool:
        """True if the stage should skip fetching because a queue lacks room.

        Fetching is skipped so briefly that no rebalance is missed. The first place's queue is ignored while it
        overflows, because fetching then goes on. Other queues never overflow.
        """
        return any(queue.tight and not self._overflows(queue) for queue in self._queues)

    @property
    def heavy(self) -> bool:
        """True if records take too many bytes, so that the stage should fetch from no partition."""
        held = self.load.bytes - (0 if self._due is None else self._due.value_bytes)
        high, low = held >= self.limits.bytes, held <= self.limits.bytes * 3 // 4
        self._heavy = high or (self._heavy and not low)
        return self._heavy

    @property
    def batch(self) -> int:
        """The number of records to fetch in a round; at least one, since fetching also brings rebalances.

        With several places, the number is always MOST_AT_ONCE, since the first place's queue may overflow.
        """
        if len(self._queues) > 1:
            return MOST_AT_ONCE
        return max(1, min(FEW_AT_ONCE if self._due else MOST_AT_ONCE, self.first.free))

    def add(self, partition: Partition, record: Record, party: Party) -> None:
        """Queue a taken record for its tenant."""
        self._queue_of(partition).add(partition, record, party)

    def surplus(self, most: int) -> list[Queued]:
        """Remove and return up to `most` records of the first place that have to wait in the later place."""
        return self.first.surplus(most) if self._overflows(self.first) else []

    def correct(self, place: Place, party: Party, cost: float) -> None:
        """Add to the cost of a tenant's drawn records, see `FairQueue.correct`."""
        self._queues[place].correct(party, cost)

    def draw(self, room: int, ready: Ready) -> list[Queued]:
        """Remove and return up to `room` ready records: the later place's share, then each place in order."""
        drawn = self._later_due(room, ready)
        for place, queue in enumerate(self._queues):
            if place != Place.SPARE or not any(other.records for other in self._queues[: Place.SPARE]):
                drawn += queue.draw(room - len(drawn), ready)
        return drawn

    def held_back(self, partition: Partition) -> None:
        """Note that the handler had room for a record of the partition, whose tenant has used up its share."""
        self._queue_of(partition).held_back()

    def release(self, partition: Partition) -> list[Record]:
        """Remove and return all queued records of the partition."""
        return self._queue_of(partition).remove(partition)

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

    def wants_pause(self, partition: Partition) -> bool:
        """Return whether the stage should not fetch from the partition now."""
        partition.is_wide = _is_wide(partition.ledger, was_wide=partition.is_wide)
        if partition.rewind_to is not None and not partition.paused:
            return True  # the partition has to pause, because the seek happens at the resume
        if self._is_full_for(partition) or partition.phase is not Phase.OPEN:
            return partition.phase is not Phase.ASSIGNED
        return partition.is_wide

    def _is_full_for(self, partition: Partition) -> bool:
        queue = self._queue_of(partition)
        is_ahead = self._due is not None and self._due.is_paused(partition)
        return self.heavy or is_ahead or (queue.full and not self._overflows(queue))

    def _overflows(self, queue: FairQueue) -> bool:
        return len(self._queues) > 1 and queue is self.first and queue.gives_way

    def _queue_of(self, partition: Partition) -> FairQueue:
        return self._queues[partition.place]

    def _later_due(self, room: int, ready: Ready) -> list[Queued]:
        if room <= 0 or len(self._queues) == 1:
            return []
        later = self._queues[Place.LATER]
        if not (self.first.records and later.records):
            self._owed = 0.0
            return []
        self._owed += room * self._later_share
        drawn = later.draw(int(self._owed), ready)
        self._owed = min(1.0, self._owed - len(drawn))
        return drawn


def _is_wide(ledger: Ledger, *, was_wide: bool) -> bool:
    """Return whether a span is near a commit's bounds. For hysteresis, the bounds of a wide partition are lower."""
    if ledger.span < NARROW:
        return False
    span, holes = (SPAN_LOW, HOLES_LOW) if was_wide else (SPAN_HIGH, HOLES_HIGH)
    return ledger.span >= span or ledger.holes >= holes


KEPT = 4
"""The reserve is one in KEPT places of the window."""


class RemoteShare:
    """Tells which records may begin in one draw from the window's queues. Only the Kafka thread calls the methods."""

    def __init__(self, window: Window, ready: Ready) -> None:
        """`ready` tells which records may begin if the shares are ignored."""
        self._window = window
        self._ready = ready
        self._kept = window.limits.records // KEPT
        self._free = window.limits.records - window.load.running
        self._left = window.limits.records - self._kept // 2 - window.load.outside.total()
        """The number of free places that are left for records that may wait for servers."""
        self._drawn: Counter[Party] = Counter()

    def ready(self, partition: Partition, record: Record) -> bool:
        """Return whether the record may begin now. If so, the queue draws the record at once."""
        if not self._ready(partition, record):
            return False
        party = record.outside
        if party is not None:
            if not self._may_begin(party):
                self._window.held_back(partition)
                return False
            self._drawn[party] += 1
            self._left -= 1
        self._free -= 1
        return True

    def _may_begin(self, party: Party) -> bool:
        held = self._window.load.outside[party] + self._drawn[party]
        return self._left > 0 and (held < min(self._free, self._left) or self._free > self._kept)
