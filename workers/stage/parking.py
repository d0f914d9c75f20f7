"""Records wait for the window in a lot, in which each party has a queue of its own.

The queues of a lot are served in turn, by deficit round robin (Shreedhar and Varghese, SIGCOMM 1995). A queue saves one
unit each time round. A record costs one unit and one more for each 4 KiB, since a long prompt is more work than a short
one. Within a queue the partitions take turns, and a partition's records keep their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice

from workers.stage.partition import Partition
from workers.stage.record import Record
from workers.stage.sharing import Party

UNIT_BYTES = 4096
TIGHT_SECONDS = 0.2
"""How long the lot may lack room before partitions are paused. A pause discards prefetched records, and quick records
make room sooner than a resumed partition delivers."""

AHEAD_RECORDS = 2048
"""How many of a partition's records may be put off until they are due, where the first is due soon. With one record the
whole tier would be fetched again each time a record is due."""
PUT_OFF_SHARE = 4
"""Put-off records may take this multiple of the lot's capacity in units, and this fraction of the window's bytes."""

Parked = tuple[Partition, Record]
Ready = Callable[[Partition, Sequence[Record], int], int]
"""Returns how many of the first records of a queue may be dispatched now, up to a number. Changes nothing."""


def cost_of(record: Record) -> int:
    """Return the units that a record costs."""
    return _units(1, len(record.value))


def _units(records: int, size: int) -> int:
    """Return about the units of several records of `size` bytes in all."""
    return records + size // UNIT_BYTES


class PartyQueue:
    """One party's parked records: a queue for each partition, in the order of their turns."""

    __slots__ = ("_queues", "bytes", "records", "savings")

    def __init__(self) -> None:
        self._queues: dict[Partition, deque[Record]] = {}
        self.records = 0
        self.bytes = 0
        self.savings = 0
        """Units that the party may spend at its turn."""

    @property
    def cost(self) -> int:
        """About the units of all its records."""
        return _units(self.records, self.bytes)

    def add(self, partition: Partition, record: Record) -> None:
        """Add a record at the end of its partition's queue."""
        queue = self._queues.get(partition)
        if queue is None:
            queue = self._queues[partition] = deque()
        queue.append(record)
        self.records += 1
        self.bytes += len(record.value)

    def take(self, room: int, ready: Ready) -> list[Parked]:
        """Take out up to `room` records whatever they cost, an equal part from each partition."""
        taken: list[Parked] = []
        while (left := room - len(taken)) > 0:
            partitions = [partition for partition, queue in self._queues.items() if ready(partition, queue, 1)]
            if not partitions:
                break
            for partition in partitions[:left]:
                taken += self._front(partition, max(1, left // len(partitions)), ready)
        return taken

    def spend(self, room: int, ready: Ready) -> list[Parked]:
        """Take out up to `room` records as far as the savings go. With no ready record there is nothing to save for."""
        taken: list[Parked] = []
        while len(taken) < room:
            for partition, queue in self._queues.items():
                if ready(partition, queue, 1):
                    break
            else:
                self.savings = 0
                break
            cost = cost_of(queue[0])
            if cost > self.savings:
                break
            self.savings -= cost
            taken.append((partition, self._next(partition, queue)))
            if not self.savings:
                break
        return taken

    def newest(self) -> Parked:
        """Take out the last record of the partition that has the most."""
        partition, queue = max(self._queues.items(), key=lambda entry: len(entry[1]))
        return partition, self._back(partition, queue)

    def of(self, partition: Partition) -> Iterable[Record]:
        """Return one partition's records, in order."""
        return self._queues.get(partition, ())

    def remove(self, partition: Partition, start: int) -> list[Record]:
        """Take out a partition's records from an offset on, the last one first."""
        removed: list[Record] = []
        queue = self._queues.get(partition)
        while queue and queue[-1].offset >= start:
            removed.append(self._back(partition, queue))
        return removed

    def _front(self, partition: Partition, most: int, ready: Ready) -> list[Parked]:
        """Take out the first of a partition's records; its next turn comes after those of all others."""
        queue = self._queues.pop(partition)
        front = [(partition, queue.popleft()) for _ in range(ready(partition, queue, min(most, len(queue))))]
        self.records -= len(front)
        self.bytes -= sum(len(record.value) for _, record in front)
        if queue:
            self._queues[partition] = queue
        return front

    def _next(self, partition: Partition, queue: deque[Record]) -> Record:
        """Take out one record, as `_front` does: parties that take turns take one at a time."""
        record = queue.popleft()
        self.records -= 1
        self.bytes -= len(record.value)
        del self._queues[partition]
        if queue:
            self._queues[partition] = queue
        return record

    def _back(self, partition: Partition, queue: deque[Record]) -> Record:
        record = queue.pop()
        self.records -= 1
        self.bytes -= len(record.value)
        if not queue:
            del self._queues[partition]
        return record


class Lot:
    """Parked records of partitions that are treated alike. Bounded in records and bytes, with hysteresis.

    Where several parties wait the lot overflows instead of filling up: see `surplus`.
    """

    def __init__(self, capacity: int, capacity_bytes: int) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._put_off_capacity = min(PUT_OFF_SHARE * capacity, capacity_bytes // PUT_OFF_SHARE // UNIT_BYTES)
        """Units."""
        self._lines: dict[Party, PartyQueue] = {}
        """The parties' queues, in the order of their turns."""
        self._tight_since: float | None = None
        self.full = False
        """Whether partitions are to be paused: the lot lacked room for a while, and has not been half empty since."""
        self.filler: Party = None
        """The only party that waited when the lot was last found full; None where it was not, or several waited."""
        self.parked = 0
        self.bytes = 0
        self._put_off: dict[Partition, bool] = {}
        """Partitions whose records are put off, and whether the first is due soon. Put-off records count nowhere else
        here, or many of them would leave no room for other records until they are due."""
        self._put_off_records = 0
        self.put_off_bytes = 0
        self._cut: dict[Partition, int] = {}
        """Partitions that are not fetched from until at most this many of their records are left."""

    @property
    def put_off(self) -> Collection[Partition]:
        """Partitions whose first record was not due when all of them were put off."""
        return self._put_off.keys()

    def is_cut(self, partition: Partition) -> bool:
        """Return whether so many of a partition's records are put off that no more are to be fetched yet."""
        return partition in self._cut

    @property
    def free(self) -> int:
        """How many more records fit."""
        return max(0, self._capacity - self.parked)

    @property
    def crowded(self) -> bool:
        """Whether more records are parked than fit."""
        return self.parked > self._capacity or self.bytes > self._capacity_bytes

    @property
    def tight(self) -> bool:
        """Whether the lot lacks room, and may have some soon."""
        return self._tight_since is not None and not self.full

    def look(self, now: float) -> None:
        """Note whether the lot has room at `now`, monotonic seconds."""
        if self.parked < self._capacity and self.bytes < self._capacity_bytes:
            self._tight_since = None
        elif self._tight_since is None:
            self._tight_since = now
        high = self._tight_since is not None and now - self._tight_since >= TIGHT_SECONDS
        low = self.parked <= self._capacity // 2 and self.bytes <= self._capacity_bytes * 3 // 4
        self.full = high or (self.full and not low)
        # The lot is certainly full here: a moment later it may be empty, or hold another party's few records.
        self.filler = next(iter(self._lines)) if self.full and not self.contended else None

    @property
    def contended(self) -> bool:
        """Whether several parties wait."""
        return len(self._lines) > 1

    @property
    def can_give_way(self) -> bool:
        """Whether a party has more than one record here: `surplus` takes out no party's only record."""
        return self.parked > len(self._lines)

    def add(self, partition: Partition, record: Record, party: Party) -> None:
        """Park a record."""
        line = self._lines.get(party)
        if line is None:
            line = self._lines[party] = PartyQueue()
        line.add(partition, record)
        partition.parked += 1
        partition.parked_bytes += len(record.value)
        self._count(partition, 1, len(record.value))

    def draw(self, room: int, ready: Ready) -> list[Parked]:
        """Take out up to `room` records that are ready, the parties in turn."""
        if room <= 0 or not self._lines:
            return []
        if len(self._lines) > 1:
            drawn = self._in_turn(room, ready)
        else:
            [(party, line)] = self._lines.items()
            drawn = line.take(room, ready)
            if not line.records:
                del self._lines[party]
        self._left(drawn)
        return drawn

    def first(self, partition: Partition) -> Record:
        """Return the first of a partition's records. Raises KeyError where it has none."""
        records = [record for line in self._lines.values() for record in islice(line.of(partition), 1)]
        if not records:
            raise KeyError(partition.id)
        return min(records, key=_offset)

    def surplus(self) -> list[Parked]:
        """While the lot is crowded, take out the newest record of the party that has the most, and more than one.

        So a party below its share loses no record, whatever others send. Where as many parties as places wait, each
        with one record, none is taken out: then partitions have to be paused, see `can_give_way`.
        """
        found: list[Parked] = []
        while self.crowded:
            heaviest = max((line for line in self._lines.values() if line.records > 1), key=_cost, default=None)
            if heaviest is None:
                break
            found.append(heaviest.newest())
            self._left(found[-1:])
        return found

    def put_off_until_due(self, partition: Partition, *, soon: bool) -> None:
        """Put off a partition's present and coming records, as the first is not due. None come until it is `soon`."""
        before = self._put_off.get(partition)
        if before is None:
            self._count(partition, -partition.parked, -partition.parked_bytes)
            self._put_off[partition] = soon
            self._count(partition, partition.parked, partition.parked_bytes)
        else:
            self._put_off[partition] = soon
        if not soon:
            self._cut[partition] = 0
        elif before is False and partition.parked > AHEAD_RECORDS // 2:
            self._cut[partition] = AHEAD_RECORDS // 2  # enough are here
        elif before is False:
            self._cut.pop(partition, None)

    def bring_back(self, partition: Partition) -> None:
        """Let a partition's records wait for room, and no longer for their time."""
        if partition in self._put_off:
            self._count(partition, -partition.parked, -partition.parked_bytes)
            del self._put_off[partition]
            self._cut.pop(partition, None)
            self._count(partition, partition.parked, partition.parked_bytes)

    def cut(self) -> list[tuple[Partition, list[Record]]]:
        """Take out the records that are too many to be put off here: of each partition, the last one first.

        PUT_OFF_SHARE bounds all of them together. Partitions that are not due soon make room first.
        """
        found = [(one, self._keep(one, AHEAD_RECORDS)) for one in self._put_off if one.parked > AHEAD_RECORDS]
        while _units(self._put_off_records, self.put_off_bytes) > self._put_off_capacity:
            heaviest = self._heaviest_put_off()
            if heaviest is None:
                break
            found.append((heaviest, self._keep(heaviest, heaviest.parked // 2 if self._put_off[heaviest] else 1)))
        return found

    def _heaviest_put_off(self) -> Partition | None:
        """Return the heaviest partition of several records: one not due soon, or else one above an equal part."""
        most = self._put_off_capacity / len(self._put_off)
        several = [partition for partition in self._put_off if partition.parked > 1]
        late = [partition for partition in several if not self._put_off[partition]]
        return max(late or [one for one in several if _parked_units(one) > most], key=_parked_units, default=None)

    def _keep(self, partition: Partition, most: int) -> list[Record]:
        self._cut[partition] = most // 2 if self._put_off[partition] else 0
        return self.remove(partition, keep=most)

    def remove(self, partition: Partition, keep: int = 0) -> list[Record]:
        """Take out a partition's records, all but the first `keep`."""
        if partition.parked <= keep:
            return []
        offsets = sorted(record.offset for line in self._lines.values() for record in line.of(partition))
        removed: list[Record] = []
        for party, line in list(self._lines.items()):
            removed += line.remove(partition, offsets[keep])
            if not line.records:
                del self._lines[party]
        self._left([(partition, record) for record in removed])
        return removed

    def _in_turn(self, room: int, ready: Ready) -> list[Parked]:
        drawn: list[Parked] = []
        fruitless = 0
        while len(drawn) < room and fruitless < len(self._lines):
            party = next(iter(self._lines))
            line = self._lines.pop(party)
            line.savings += 1
            taken = line.spend(room - len(drawn), ready)
            if line.records:
                self._lines[party] = line
            fruitless = 0 if taken or line.savings else fruitless + 1
            drawn += taken
        return drawn

    def _left(self, parked: list[Parked]) -> None:
        for partition, record in parked:
            partition.parked -= 1
            partition.parked_bytes -= len(record.value)
            self._count(partition, -1, -len(record.value))
        for partition in {partition for partition, _ in parked}:
            if partition.parked <= self._cut.get(partition, -1):
                del self._cut[partition]
            if not partition.parked:
                self._put_off.pop(partition, None)

    def _count(self, partition: Partition, records: int, size: int) -> None:
        """Count records as parked here, or as put off."""
        if partition in self._put_off:
            self._put_off_records += records
            self.put_off_bytes += size
        else:
            self.parked += records
            self.bytes += size


def _cost(line: PartyQueue) -> int:
    return line.cost


def _parked_units(partition: Partition) -> int:
    return _units(partition.parked, partition.parked_bytes)


def _offset(record: Record) -> int:
    return record.offset
