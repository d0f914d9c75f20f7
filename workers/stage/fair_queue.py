"""The fair queue: taken records that wait for the window, shared between tenants.

The tenant that has been served least is next (start-time fair queueing: Goyal, Vin and Cheng, SIGCOMM 1996; with tokens
as cost it is the virtual token counter of Sheng et al., OSDI 2024). A tenant that comes back after a while begins at
the other tenants' level: it cannot save up service. Within a tenant the most urgent record is first, with two
exceptions that depend on the partition:

- An urgent record overtakes records of its partition only within REACH offsets. After a kill, each undone record below
  the highest one that began is a suspect.
- A record that holds up a full partition is next, because no record behind it can be fetched before it is done.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count

from workers.stage.partition import Partition
from workers.stage.record import Party, Record

REACH = 1_024
"""The number of offsets within which an urgent record overtakes others of its partition."""
OWN_BYTES = 1_024
"""A record's own cost in memory, beside its value."""
QUEUE_BYTES = 64 * 1024 * 1024
"""The largest capacity of a queue. The values and OWN_BYTES of each record count."""
TIGHT_SECONDS = 0.2
"""The time for which the queue may lack room before partitions are paused. A pause discards prefetched records, and
quick records make room sooner than a resumed partition delivers."""
SLOW_SECONDS = 2.0
"""A full queue is slow if it gives out fewer records than `busy_records` in this time. Further records would wait
longer."""
STILL_SECONDS = 10.0
"""A queue that neither gives out nor holds back a record for this time is not slow, because the engine is away."""
MOST_FORMER = 10_000
"""Cap on the number of tenants that have no queued record, and whose `served` is kept."""

Queued = tuple[Partition, Record]
Ready = Callable[[Partition, Record], bool]
"""Returns whether this record may be dispatched now. If so, the queue draws the record at once."""


class _Line:
    """One tenant's records of one partition.

    While no record is more urgent than an earlier one, the line is a plain queue. Afterwards the records within REACH
    of the first one are kept in the order of urgency, and the others by offset.
    """

    __slots__ = ("_far", "_is_plain", "_near", "_partition", "_urgent")

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._is_plain = True
        """True if the order of offsets is the order of urgency. All records are in `_far`."""
        self._near: OrderedDict[int, Record] = OrderedDict()
        """The records within REACH of the first one, by ascending offset."""
        self._urgent: deque[Record] = deque()
        """The same records, the most urgent first."""
        self._far: deque[Record] = deque()
        """The other records, by ascending offset."""

    def __len__(self) -> int:
        return len(self._near) + len(self._far)

    def add(self, record: Record) -> None:
        far = self._far
        if self._is_plain:
            if not far or (record.urgency >= far[-1].urgency and record.offset > far[-1].offset):
                far.append(record)
                return
            self._is_plain = False
            self._advance()
        if record.offset > next(iter(self._near)) + REACH:
            far.append(record)
            if len(far) > 1 and record.offset < far[-2].offset:  # given back, and fetched again
                self._far = deque(sorted(far, key=_offset))
        else:
            self._come_near(record)

    @property
    def front(self) -> Record:
        """The record to draw next: one that holds up its full partition, or else the most urgent one."""
        if self._is_plain:
            return self._far[0]
        if self._partition.is_wide:
            return self._near.get(self._partition.ledger.base, self._urgent[0])
        return self._urgent[0]

    @property
    def urgency(self) -> float:
        """The urgency of the front among the tenant's partitions."""
        front = self.front
        if self._partition.is_wide and self._partition.ledger.base == front.offset:
            return -math.inf
        return front.urgency

    def draw(self) -> Record:
        """Remove and return the front."""
        if self._is_plain:
            return self._far.popleft()
        record = self.front
        if record is self._urgent[0]:
            self._urgent.popleft()
        else:
            self._urgent.remove(record)
        del self._near[record.offset]
        self._advance()
        return record

    def last(self) -> Record:
        """Remove and return the record that is least urgent, or has the highest offset beyond REACH."""
        if self._far:
            return self._far.pop()
        record = self._urgent.pop()
        del self._near[record.offset]
        return record

    def records(self) -> list[Record]:
        """Return all records."""
        return [*self._near.values(), *self._far]

    def _advance(self) -> None:
        while self._far and (not self._near or self._far[0].offset <= next(iter(self._near)) + REACH):
            self._come_near(self._far.popleft())

    def _come_near(self, record: Record) -> None:
        last = next(reversed(self._near), -1)
        self._near[record.offset] = record
        if record.offset < last:
            self._near = OrderedDict(sorted(self._near.items()))
        if self._urgent and _order(record) < _order(self._urgent[-1]):
            insort(self._urgent, record, key=_order)
        else:
            self._urgent.append(record)


class _Tenant:
    """One tenant's records, in a line for each partition. Equally urgent partitions take turns."""

    __slots__ = ("_lines", "cost", "party", "records", "served", "turn")

    def __init__(self, party: Party, served: float) -> None:
        self._lines: dict[Partition, _Line] = {}
        self.party = party
        self.records = 0
        self.cost = 0.0
        """The cost of all queued records."""
        self.served = served
        """The cost of the tenant's drawn records, in the queue's virtual time."""
        self.turn = 0
        """The number of the tenant's valid entry in the heap of turns."""

    def add(self, partition: Partition, record: Record) -> None:
        line = self._lines.get(partition)
        if line is None:
            line = self._lines[partition] = _Line(partition)
        line.add(record)
        self.records += 1
        self.cost += record.cost

    def draw(self, room: int, ready: Ready, until: float) -> list[Queued]:
        """Remove and return up to `room` ready records, the most urgent first.

        The first ready record is always drawn, and further records while `served` is below `until`.
        """
        drawn: list[Queued] = []
        fronts = [(line.urgency, turn, partition) for turn, (partition, line) in enumerate(self._lines.items())]
        heapify(fronts)
        turn = len(fronts)
        while fronts and len(drawn) < room and (not drawn or self.served < until):
            partition = fronts[0][2]
            line = self._lines[partition]
            if not ready(partition, line.front):
                heappop(fronts)
                continue
            record = self._gone(line.draw())
            self.served += record.cost
            drawn.append((partition, record))
            del self._lines[partition]
            if line:
                self._lines[partition] = line  # this partition now comes last, so that partitions take turns
                heapreplace(fronts, (line.urgency, turn, partition))
                turn += 1
            else:
                heappop(fronts)
        return drawn

    def last(self) -> Queued:
        """Remove and return the last record of the partition with the most records."""
        partition, line = max(self._lines.items(), key=lambda entry: len(entry[1]))
        record = self._gone(line.last())
        if not line:
            del self._lines[partition]
        return partition, record

    def remove(self, partition: Partition) -> list[Record]:
        """Remove and return a partition's records."""
        line = self._lines.pop(partition, None)
        return [] if line is None else [self._gone(record) for record in line.records()]

    def _gone(self, record: Record) -> Record:
        self.records -= 1
        self.cost -= record.cost
        return record


class FairQueue:
    """The queued records of one place, bounded in bytes with hysteresis.

    If several tenants wait, the queue overflows instead of becoming full: see `surplus`.
    """

    def __init__(self, capacity_bytes: int, busy_records: int) -> None:
        """A full queue is not slow if it gives out `busy_records` in SLOW_SECONDS."""
        self._capacity = min(QUEUE_BYTES, capacity_bytes)
        self._busy_records = busy_records
        self._tenants: dict[Party, _Tenant] = {}
        self._turns: list[tuple[float, int, _Tenant]] = []
        """A heap of `served` and turn of each tenant. Of tenants that were served equally, the lowest turn is next.
        Entries whose turn is not the tenant's present one are stale."""
        self._numbers = count(1)
        self._former: dict[Party, float] = {}
        """`served` of each tenant without a queued record, if this value is above `_reached`."""
        self._reached = 0.0
        """The virtual time of fair queueing: `served` of the tenant drawn last, as it was before that draw."""
        self._tight_since: float | None = None
        self.slow = False
        """True if the queue is full and gives out records, but fewer than `busy_records` in the last SLOW_SECONDS."""
        self.full = False
        """True if partitions have to be paused: the queue lacked room for TIGHT_SECONDS, and is not half empty yet."""
        self._counted_since = 0.0
        self._counted = 0
        """Records that a full queue has given out since `_counted_since`."""
        self._fell_behind = False
        self._gave_at = -math.inf
        self._drawn = 0
        """Records that were drawn since the last `look`."""
        self._holds_back = False
        """True if a record was held back since the last `look`."""
        self.records = 0
        self.bytes = 0
        """The size of the values and OWN_BYTES of each record."""

    @property
    def free(self) -> int:
        """The number of further records without a value that fit."""
        return max(0, self._capacity - self.bytes) // OWN_BYTES

    @property
    def crowded(self) -> bool:
        """True if more records are queued than fit."""
        return self.bytes > self._capacity

    @property
    def tight(self) -> bool:
        """True if the queue lacks room, but not yet long enough to be `full`."""
        return self._tight_since is not None and not self.full

    @property
    def gives_way(self) -> bool:
        """True if the queue overflows: it takes more records although it is full, and `surplus` removes the excess.

        A slow queue overflows, and so does a queue with several tenants. `surplus` never removes a tenant's only
        record.
        """
        return self.records > len(self._tenants) and (self.slow or len(self._tenants) > 1)

    def look(self, now: float) -> None:
        """Update `tight`, `full` and `slow`. `now`: monotonic seconds."""
        if self.bytes < self._capacity:
            self._tight_since = None
        elif self._tight_since is None:
            self._tight_since = now
        high = self._tight_since is not None and now - self._tight_since >= TIGHT_SECONDS
        low = self.bytes <= self._capacity // 2
        if high and not self.full:
            self._counted_since, self._counted, self._fell_behind = now, 0, False
        self._gave_at = now if self._drawn or self._holds_back else self._gave_at
        self._counted += self._drawn
        self._drawn, self._holds_back = 0, False
        if now - self._counted_since >= SLOW_SECONDS:
            self._fell_behind = self._counted < self._busy_records
            self._counted_since, self._counted = now, 0
        self.full = high or (self.full and not low)
        self.slow = self.full and self._fell_behind and now - self._gave_at < STILL_SECONDS

    def add(self, partition: Partition, record: Record, party: Party) -> None:
        """Queue a record for its tenant."""
        tenant = self._tenants.get(party)
        if tenant is None:
            tenant = self._tenants[party] = _Tenant(party, max(self._reached, self._former.pop(party, 0.0)))
            tenant.add(partition, record)
            self._line_up(tenant)
        else:
            tenant.add(partition, record)
        self.records += 1
        self.bytes += OWN_BYTES + len(record.value)

    def draw(self, room: int, ready: Ready) -> list[Queued]:
        """Remove and return up to `room` ready records.

        The next record always comes from the tenant that has been served least.
        """
        drawn: list[Queued] = []
        unready: list[_Tenant] = []
        while len(drawn) < room and (tenant := self._next()) is not None:
            heappop(self._turns)
            following = self._next()
            taken = tenant.draw(room - len(drawn), ready, math.inf if following is None else following.served)
            if not taken:
                unready.append(tenant)
                tenant.turn = 0
                continue
            drawn += taken
            self._reached = max(self._reached, tenant.served - taken[-1][1].cost)
            self._line_up(tenant)
        for tenant in unready:
            tenant.served = max(tenant.served, self._reached)
            self._line_up(tenant)
        self._left(drawn)
        self._drawn += len(drawn)
        return drawn

    def held_back(self) -> None:
        """Note that the handler had room for a record that may not begin yet. So the engine is not away."""
        self._holds_back = True

    def correct(self, party: Party, cost: float) -> None:
        """Add to the cost of a tenant's drawn records: the real cost minus the estimate, which may be negative."""
        tenant = self._tenants.get(party)
        if tenant is not None:
            tenant.served += cost
            self._line_up(tenant)
            return
        served = self._former.pop(party, self._reached) + cost
        if served > self._reached:
            self._former[party] = served

    def surplus(self, most: int) -> list[Queued]:
        """While the queue is crowded, remove and return up to `most` records: each time the costliest tenant's last.

        So a tenant below its share loses no record, whatever other tenants send. A tenant's only record stays. If each
        tenant has only one record, partitions have to be paused: see `gives_way`.
        """
        found: list[Queued] = []
        if not (self.crowded and self.gives_way):
            return found
        heaviest = [(-tenant.cost, turn, tenant) for turn, tenant in enumerate(self._tenants.values())]
        heapify(heaviest)
        while heaviest and len(found) < most and self.crowded and self.gives_way:
            _, turn, tenant = heaviest[0]
            if tenant.records < 2:
                heappop(heaviest)
                continue
            found.append(tenant.last())
            self._left(found[-1:])
            heapreplace(heaviest, (-tenant.cost, turn, tenant))
        return found

    def remove(self, partition: Partition) -> list[Record]:
        """Remove and return a partition's records."""
        removed: list[Record] = []
        for tenant in list(self._tenants.values()):
            gone = tenant.remove(partition)
            if gone:
                removed += gone
                if not tenant.records:
                    self._line_up(tenant)
        self._left([(partition, record) for record in removed])
        return removed

    def _next(self) -> _Tenant | None:
        """Return the tenant that has been served least, or None. Drops stale entries."""
        while self._turns and self._turns[0][2].turn != self._turns[0][1]:
            heappop(self._turns)
        return self._turns[0][2] if self._turns else None

    def _line_up(self, tenant: _Tenant) -> None:
        """Put a tenant behind all others that were served equally, or forget a tenant without a record."""
        tenant.turn = next(self._numbers)
        if tenant.records:
            heappush(self._turns, (tenant.served, tenant.turn, tenant))
            return
        del self._tenants[tenant.party]
        if tenant.served > self._reached:
            self._former[tenant.party] = tenant.served
        if len(self._former) > MOST_FORMER:
            ahead = {each: served for each, served in self._former.items() if served > self._reached}
            self._former = ahead if len(ahead) <= MOST_FORMER // 2 else {}

    def _left(self, gone: list[Queued]) -> None:
        self.records -= len(gone)
        self.bytes -= sum([OWN_BYTES + len(record.value) for _, record in gone])


def _order(record: Record) -> tuple[int, int]:
    return record.urgency, record.offset


def _offset(record: Record) -> int:
    return record.offset
