"""Parking: taken records wait for the window in a lot, which has a queue for each party.

A lot serves its queues in turn, by deficit round robin (Shreedhar and Varghese, SIGCOMM 1995). A queue earns one unit
at each turn. A record costs one unit, and one more for each 4 KiB, since a long prompt is more work than a short
prompt. Within a queue the partitions take turns, and a partition's records keep their order.
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
"""The time for which the lot may lack room before partitions are paused. A pause discards prefetched records, and
quick records make room sooner than a resumed partition delivers."""

AHEAD_RECORDS = 2048
"""The most put-off records of a partition whose first record is due soon. With only one record here, the partition
would be fetched again from the next record on each time a record is due."""
PUT_OFF_SHARE = 4
"""Put-off records may take PUT_OFF_SHARE times the lot's capacity in units, and 1/PUT_OFF_SHARE of the lot's bytes."""

Parked = tuple[Partition, Record]
Ready = Callable[[Partition, Sequence[Record], int], int]
"""Returns how many records at the front of a partition's queue may be dispatched now, up to the given number."""


def cost_of(record: Record) -> int:
    """Return the units that a record costs."""
    return _units(1, len(record.value))


def _units(records: int, size: int) -> int:
    """Return the approximate cost in units of `records` records with `size` bytes in all."""
    return records + size // UNIT_BYTES


class PartyQueue:
    """One party's parked records: a queue for each partition, in the order of their turns."""

    __slots__ = ("_queues", "bytes", "records", "savings")

    def __init__(self) -> None:
        self._queues: dict[Partition, deque[Record]] = {}
        self.records = 0
        self.bytes = 0
        self.savings = 0
        """Units that the party has earned and not spent."""

    @property
    def cost(self) -> int:
        """The approximate cost in units of all records in the queue."""
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
        """Remove and return up to `room` records regardless of cost, an equal part from each partition."""
        taken: list[Parked] = []
        while (left := room - len(taken)) > 0:
            partitions = [partition for partition, queue in self._queues.items() if ready(partition, queue, 1)]
            if not partitions:
                break
            for partition in partitions[:left]:
                taken += self._front(partition, max(1, left // len(partitions)), ready)
        return taken

    def spend(self, room: int, ready: Ready) -> list[Parked]:
        """Remove and return up to `room` records that the savings pay for. If no record is ready, the savings lapse."""
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
        """Remove and return the last record of the partition with the most records."""
        partition, queue = max(self._queues.items(), key=lambda entry: len(entry[1]))
        return partition, self._back(partition, queue)

    def of(self, partition: Partition) -> Iterable[Record]:
        """Return one partition's records, in order."""
        return self._queues.get(partition, ())

    def remove(self, partition: Partition, start: int) -> list[Record]:
        """Remove and return a partition's records from the offset `start` on, the last record first."""
        removed: list[Record] = []
        queue = self._queues.get(partition)
        while queue and queue[-1].offset >= start:
            removed.append(self._back(partition, queue))
        return removed

    def _front(self, partition: Partition, most: int, ready: Ready) -> list[Parked]:
        """Remove and return up to `most` ready records from the front, and move the partition behind all others."""
        queue = self._queues.pop(partition)
        front = [(partition, queue.popleft()) for _ in range(ready(partition, queue, min(most, len(queue))))]
        self.records -= len(front)
        self.bytes -= sum(len(record.value) for _, record in front)
        if queue:
            self._queues[partition] = queue
        return front

    def _next(self, partition: Partition, queue: deque[Record]) -> Record:
        """Remove and return the partition's first record, and move the partition behind all others.

        Parties that take turns use this instead of `_front`, since they draw one record at a time.
        """
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
    """The parked records of the first places or of the later place, bounded in records and bytes with hysteresis.

    If several parties wait, the lot overflows instead of becoming full: see `surplus`.
    """

    def __init__(self, capacity: int, capacity_bytes: int) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._put_off_capacity = min(PUT_OFF_SHARE * capacity, capacity_bytes // PUT_OFF_SHARE // UNIT_BYTES)
        """The room for put-off records, in units."""
        self._parties: dict[Party, PartyQueue] = {}
        """The queue of each party, in the order of the parties' turns."""
        self._tight_since: float | None = None
        self.full = False
        """True if partitions have to be paused: the lot lacked room for a while, and has not been half empty since."""
        self.filler: Party = None
        """The only party in the lot at the last `look`; None if the lot was not full, or had several parties."""
        self.parked = 0
        self.bytes = 0
        self._put_off: dict[Partition, bool] = {}
        """Partitions whose records are put off; True if the partition's first record is due soon. `parked` and `bytes`
        exclude put-off records, since these would leave no room for other records until they are due."""
        self._put_off_records = 0
        self.put_off_bytes = 0
        self._cut: dict[Partition, int] = {}
        """Partitions not to fetch from until at most the given number of the partition's records are parked."""

    @property
    def put_off(self) -> Collection[Partition]:
        """Partitions whose records are put off until the first one is due."""
        return self._put_off.keys()

    def is_cut(self, partition: Partition) -> bool:
        """Return whether the partition has enough put-off records, and is not to be fetched from for now."""
        return partition in self._cut

    @property
    def free(self) -> int:
        """The number of further records that fit."""
        return max(0, self._capacity - self.parked)

    @property
    def crowded(self) -> bool:
        """True if more records are parked than fit."""
        return self.parked > self._capacity or self.bytes > self._capacity_bytes

    @property
    def tight(self) -> bool:
        """True if the lot lacks room, but not yet long enough to be `full`."""
        return self._tight_since is not None and not self.full

    def look(self, now: float) -> None:
        """Update `tight`, `full` and `filler`. `now`: monotonic seconds."""
        if self.parked < self._capacity and self.bytes < self._capacity_bytes:
            self._tight_since = None
        elif self._tight_since is None:
            self._tight_since = now
        high = self._tight_since is not None and now - self._tight_since >= TIGHT_SECONDS
        low = self.parked <= self._capacity // 2 and self.bytes <= self._capacity_bytes * 3 // 4
        self.full = high or (self.full and not low)
        # The filler is determined here, while the lot is full: later in the round other records may be in the lot.
        self.filler = next(iter(self._parties)) if self.full and not self.contended else None

    @property
    def contended(self) -> bool:
        """True if several parties wait."""
        return len(self._parties) > 1

    @property
    def can_give_way(self) -> bool:
        """True if some party has more than one record in the lot: `surplus` never removes a party's only record."""
        return self.parked > len(self._parties)

    def add(self, partition: Partition, record: Record, party: Party) -> None:
        """Park a record."""
        queue = self._parties.get(party)
        if queue is None:
            queue = self._parties[party] = PartyQueue()
        queue.add(partition, record)
        partition.parked += 1
        partition.parked_bytes += len(record.value)
        self._count(partition, 1, len(record.value))

    def draw(self, room: int, ready: Ready) -> list[Parked]:
        """Remove and return up to `room` ready records. The parties take turns."""
        if room <= 0 or not self._parties:
            return []
        if len(self._parties) > 1:
            drawn = self._in_turn(room, ready)
        else:
            [(party, queue)] = self._parties.items()
            drawn = queue.take(room, ready)
            if not queue.records:
                del self._parties[party]
        self._left(drawn)
        return drawn

    def first(self, partition: Partition) -> Record:
        """Return the partition's first record. Raises KeyError if the partition has no record here."""
        records = [record for queue in self._parties.values() for record in islice(queue.of(partition), 1)]
        if not records:
            raise KeyError(partition.id)
        return min(records, key=_offset)

    def surplus(self) -> list[Parked]:
        """While the lot is crowded, remove the newest record of the party with the highest cost. Return all removed.

        So a party below its share loses no record, whatever other parties send. A party's only record stays. If each
        party has only one record, the lot cannot give way, and partitions have to be paused: see `can_give_way`.
        """
        found: list[Parked] = []
        while self.crowded:
            heaviest = max((queue for queue in self._parties.values() if queue.records > 1), key=_cost, default=None)
            if heaviest is None:
                break
            found.append(heaviest.newest())
            self._left(found[-1:])
        return found

    def put_off_until_due(self, partition: Partition, *, soon: bool) -> None:
        """Put off a partition's present and later records, as the first is not due.

        The partition is not fetched from until its first record is due `soon`.
        """
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
            self._cut[partition] = AHEAD_RECORDS // 2  # enough records are parked already
        elif before is False:
            self._cut.pop(partition, None)

    def bring_back(self, partition: Partition) -> None:
        """Count a partition's records as waiting for room again, no longer as put off."""
        if partition in self._put_off:
            self._count(partition, -partition.parked, -partition.parked_bytes)
            del self._put_off[partition]
            self._cut.pop(partition, None)
            self._count(partition, partition.parked, partition.parked_bytes)

    def cut(self) -> list[tuple[Partition, list[Record]]]:
        """Remove and return put-off records beyond the bounds. Each list begins with the partition's last record.

        AHEAD_RECORDS bounds each partition, and PUT_OFF_SHARE all partitions together. Partitions that are not due soon
        lose records first.
        """
        found = [(one, self._keep(one, AHEAD_RECORDS)) for one in self._put_off if one.parked > AHEAD_RECORDS]
        while _units(self._put_off_records, self.put_off_bytes) > self._put_off_capacity:
            heaviest = self._heaviest_put_off()
            if heaviest is None:
                break
            found.append((heaviest, self._keep(heaviest, heaviest.parked // 2 if self._put_off[heaviest] else 1)))
        return found

    def _heaviest_put_off(self) -> Partition | None:
        """Return the heaviest put-off partition that is not due soon, or else the heaviest above an equal part.

        Partitions with only one record do not count. Returns None if no partition is left.
        """
        most = self._put_off_capacity / len(self._put_off)
        several = [partition for partition in self._put_off if partition.parked > 1]
        late = [partition for partition in several if not self._put_off[partition]]
        return max(late or [one for one in several if _parked_units(one) > most], key=_parked_units, default=None)

    def _keep(self, partition: Partition, most: int) -> list[Record]:
        self._cut[partition] = most // 2 if self._put_off[partition] else 0
        return self.remove(partition, keep=most)

    def remove(self, partition: Partition, keep: int = 0) -> list[Record]:
        """Remove and return a partition's records except the first `keep`."""
        if partition.parked <= keep:
            return []
        offsets = sorted(record.offset for queue in self._parties.values() for record in queue.of(partition))
        removed: list[Record] = []
        for party, queue in list(self._parties.items()):
            removed += queue.remove(partition, offsets[keep])
            if not queue.records:
                del self._parties[party]
        self._left([(partition, record) for record in removed])
        return removed

    def _in_turn(self, room: int, ready: Ready) -> list[Parked]:
        drawn: list[Parked] = []
        fruitless = 0
        while len(drawn) < room and fruitless < len(self._parties):
            party = next(iter(self._parties))
            queue = self._parties.pop(party)
            queue.savings += 1
            taken = queue.spend(room - len(drawn), ready)
            if queue.records:
                self._parties[party] = queue
            fruitless = 0 if taken or queue.savings else fruitless + 1
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
        """Add to the counts of parked records, or of put-off records if the partition is put off."""
        if partition in self._put_off:
            self._put_off_records += records
            self.put_off_bytes += size
        else:
            self.parked += records
            self.bytes += size


def _cost(queue: PartyQueue) -> int:
    return queue.cost


def _parked_units(partition: Partition) -> int:
    return _units(partition.parked, partition.parked_bytes)


def _offset(record: Record) -> int:
    return record.offset
