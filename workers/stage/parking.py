"""Parking: taken records wait for the window in a lot, which has a queue for each party.

A lot serves the party that has been served least (start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996; with
tokens as cost it is the virtual token counter of Sheng et al., OSDI 2024). A party that comes back after a while begins
at the other parties' level: it cannot save up service. Within a party the most urgent record is first.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from heapq import heapify, heappop, heappush
from itertools import islice

from workers.stage.partition import Partition
from workers.stage.party_queue import Parked, PartyQueue, Ready
from workers.stage.record import Record
from workers.stage.sharing import Party

UNIT_BYTES = 4096
"""A put-off record takes one unit of room, and one more unit for each UNIT_BYTES of its size."""
TIGHT_SECONDS = 0.2
"""The time for which the lot may lack room before partitions are paused. A pause discards prefetched records, and
quick records make room sooner than a resumed partition delivers."""

SLOW_SECONDS = 2.0
"""A full lot is slow if it gives out fewer records than its capacity in this time. Further records would wait
longer."""
STILL_SECONDS = 10.0
"""A lot that neither gives out nor holds back a record for this time is not called slow, because the engine is away."""

AHEAD_RECORDS = 2048
"""Cap on a partition's put-off records if the partition's first record is due soon.

If the lot kept only one record, the stage would seek and fetch the partition again for each due record."""
PUT_OFF_SHARE = 4
"""Put-off records may take PUT_OFF_SHARE times the lot's capacity in units, and 1/PUT_OFF_SHARE of the lot's bytes."""

MOST_FORMER = 10_000
"""Cap on the number of parties that have no parked record, and whose `served` is kept."""


class Lot:
    """The parked records of one place, bounded in records and bytes with hysteresis.

    If several parties wait, the lot overflows instead of becoming full: see `surplus`.
    """

    def __init__(self, capacity: int, capacity_bytes: int) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._put_off_capacity = min(PUT_OFF_SHARE * capacity, capacity_bytes // PUT_OFF_SHARE // UNIT_BYTES)
        """The room for put-off records, in units."""
        self._parties: dict[Party, PartyQueue] = {}
        """The queue of each party. Of parties that were served equally, the first one is next."""
        self._former: dict[Party, float] = {}
        """`served` of each party without a parked record, if this value is above `_reached`."""
        self._reached = 0.0
        """The virtual time of fair queueing: `served` of the party drawn last, as it was before that draw."""
        self._tight_since: float | None = None
        self.slow = False
        """True if the lot is full, and gave out records, but fewer than its capacity in the last SLOW_SECONDS."""
        self.full = False
        """True if partitions have to be paused: the lot lacked room for TIGHT_SECONDS, and is not half empty yet."""
        self._counted_since = 0.0
        self._counted = 0
        """Records that a full lot has given out since `_counted_since`."""
        self._fell_behind = False
        self._gave_at = -math.inf
        self._drawn = 0
        """Records that were drawn since the last `look`."""
        self._holds_back = False
        """True if a record was held back since the last `look`."""
        self.parked = 0
        self.bytes = 0
        self._put_off: dict[Partition, bool] = {}
        """Maps each partition whose records are put off to True if its first record is due soon, else to False.
        `parked` and `bytes` exclude put-off records, since put-off records would leave no room for other records until
        they are due."""
        self._put_off_records = 0
        self.put_off_bytes = 0
        self._cut: dict[Partition, int] = {}
        """Maps each partition that is not fetched from to a number. When at most this number of its records are parked,
        fetching resumes."""

    @property
    def put_off(self) -> Collection[Partition]:
        """Partitions whose records are put off until the first record is due."""
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
        """Update `tight`, `full` and `slow`. `now`: monotonic seconds."""
        if self.parked < self._capacity and self.bytes < self._capacity_bytes:
            self._tight_since = None
        elif self._tight_since is None:
            self._tight_since = now
        high = self._tight_since is not None and now - self._tight_since >= TIGHT_SECONDS
        low = self.parked <= self._capacity // 2 and self.bytes <= self._capacity_bytes * 3 // 4
        if high and not self.full:
            self._counted_since, self._counted, self._fell_behind = now, 0, False
        self._gave_at = now if self._drawn or self._holds_back else self._gave_at
        self._counted += self._drawn
        self._drawn, self._holds_back = 0, False
        if now - self._counted_since >= SLOW_SECONDS:
            self._fell_behind = self._counted < self._capacity
            self._counted_since, self._counted = now, 0
        self.full = high or (self.full and not low)
        self.slow = self.full and self._fell_behind and now - self._gave_at < STILL_SECONDS

    @property
    def gives_way(self) -> bool:
        """True if the lot overflows: it takes more records although it is full, and `surplus` removes the excess.

        A slow lot overflows, and so does a lot with several parties. `surplus` never removes a party's only record.
        """
        return self.parked > len(self._parties) and (self.slow or len(self._parties) > 1)

    def add(self, partition: Partition, record: Record, party: Party) -> None:
        """Park a record."""
        queue = self._parties.get(party)
        if queue is None:
            queue = self._parties[party] = PartyQueue(max(self._reached, self._former.pop(party, 0.0)))
        queue.add(partition, record)
        partition.parked += 1
        partition.parked_bytes += len(record.value)
        self._count(partition, 1, len(record.value))

    def draw(self, room: int, ready: Ready) -> list[Parked]:
        """Remove and return up to `room` ready records.

        The next record always comes from the party that has been served least.
        """
        if room <= 0 or not self._parties:
            return []
        drawn: list[Parked] = []
        waiting = [(queue.served, turn, party) for turn, (party, queue) in enumerate(self._parties.items())]
        heapify(waiting)
        turn, unready = len(waiting), []
        while waiting and len(drawn) < room:
            _, _, party = heappop(waiting)
            queue = self._parties[party]
            taken = queue.take(room - len(drawn), ready, waiting[0][0] if waiting else math.inf)
            if not taken:
                unready.append(queue)
                continue
            drawn += taken
            self._reached = max(self._reached, queue.served - taken[-1][1].cost)
            self._end_turn(party, queue)
            if queue.records:
                heappush(waiting, (queue.served, turn, party))
                turn += 1
        for queue in unready:
            queue.served = max(queue.served, self._reached)
        self._left(drawn)
        self._drawn += len(drawn)
        return drawn

    def held_back(self) -> None:
        """Note that the handler had room for a record that may not begin yet. So the engine is not away."""
        self._holds_back = True

    def correct(self, party: Party, cost: float) -> None:
        """Add to the cost of a party's drawn records: the real cost minus the estimate, which may be negative."""
        queue = self._parties.get(party)
        if queue is not None:
            queue.served += cost
            return
        served = self._former.pop(party, self._reached) + cost
        if served > self._reached:
            self._former[party] = served

    def first(self, partition: Partition) -> Record:
        """Return the partition's first record. Raises KeyError if the partition has no record here."""
        records = [record for queue in self._parties.values() for record in islice(queue.of(partition), 1)]
        if not records:
            raise KeyError(partition.id)
        return min(records, key=_offset)

    def surplus(self, most: int) -> list[Parked]:
        """While the lot is crowded, remove and return up to `most` records: each time the costliest party's last one.

        So a party below its share loses no record, whatever other parties send. A party's only record stays. If each
        party has only one record, partitions have to be paused: see `gives_way`.
        """
        found: list[Parked] = []
        while len(found) < most and self.crowded and self.gives_way:
            heaviest = max((queue for queue in self._parties.values() if queue.records > 1), key=_cost)
            found.append(heaviest.last())
            self._left(found[-1:])
        return found

    def put_off_until_due(self, partition: Partition, *, soon: bool) -> None:
        """Put off a partition's present and later records, because its first record is not due.

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
        """Bring back a partition's records: they are no longer put off, and wait for room again."""
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
        """Return the heaviest put-off partition that is not due soon, or else the heaviest that exceeds an equal share.

        Partitions with only one record are ignored. Returns None if no partition is left.
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
                self._end_turn(party, queue)
        self._left([(partition, record) for record in removed])
        return removed

    def _end_turn(self, party: Party, queue: PartyQueue) -> None:
        """Put a party behind all others that were served equally, or remember `served` if the party has no record."""
        del self._parties[party]
        if queue.records:
            self._parties[party] = queue
            return
        if queue.served > self._reached:
            self._former[party] = queue.served
        if len(self._former) > MOST_FORMER:
            ahead = {each: served for each, served in self._former.items() if served > self._reached}
            self._former = ahead if len(ahead) <= MOST_FORMER // 2 else {}

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


def _units(records: int, size: int) -> int:
    """Return how many units of room `records` records take, with `size` bytes in all."""
    return records + size // UNIT_BYTES


def _cost(queue: PartyQueue) -> float:
    return queue.cost


def _parked_units(partition: Partition) -> int:
    return _units(partition.parked, partition.parked_bytes)


def _offset(record: Record) -> int:
    return record.offset
