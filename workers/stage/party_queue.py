"""One party's parked records, the most urgent first."""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heapreplace

from workers.stage.partition import Partition
from workers.stage.record import Record

Parked = tuple[Partition, Record]
Ready = Callable[[Partition, Sequence[Record], int], int]
"""Returns how many records at the front of a partition's queue may be dispatched now, up to the given number."""


class PartyQueue:
    """A queue for each partition, in the order of urgency and then of offsets. Equally urgent partitions take turns."""

    __slots__ = ("_queues", "bytes", "cost", "records", "served")

    def __init__(self, served: float = 0.0) -> None:
        self._queues: dict[Partition, deque[Record]] = {}
        self.records = 0
        self.bytes = 0
        self.cost = 0.0
        """The cost of all records in the queue."""
        self.served = served
        """The cost of the party's drawn records, in the lot's virtual time. The party with the lowest value is served
        next."""

    def add(self, partition: Partition, record: Record) -> None:
        """Add a record to its partition's queue, behind all records that are as urgent."""
        queue = self._queues.get(partition)
        if queue is None:
            queue = self._queues[partition] = deque()
        if queue and _order(record) < _order(queue[-1]):
            insort(queue, record, key=_order)
        else:
            queue.append(record)
        self.records += 1
        self.bytes += len(record.value)
        self.cost += record.cost

    def take(self, room: int, ready: Ready, until: float = math.inf) -> list[Parked]:
        """Remove and return up to `room` ready records, the most urgent first.

        The first ready record is always taken, and further records while `served` is below `until`.
        """
        taken: list[Parked] = []
        fronts = [(queue[0].urgency, turn, partition) for turn, (partition, queue) in enumerate(self._queues.items())]
        heapify(fronts)
        turn = len(fronts)
        while fronts and len(taken) < room and (not taken or self.served < until):
            partition = fronts[0][2]
            queue = self._queues[partition]
            if not ready(partition, queue, 1):
                heappop(fronts)
                continue
            record = self._gone(queue.popleft())
            self.served += record.cost
            taken.append((partition, record))
            del self._queues[partition]
            if queue:
                self._queues[partition] = queue  # this partition now comes last, so that partitions take turns
                heapreplace(fronts, (queue[0].urgency, turn, partition))
                turn += 1
            else:
                heappop(fronts)
        return taken

    def last(self) -> Parked:
        """Remove and return the last record of the partition with the most records."""
        partition, queue = max(self._queues.items(), key=lambda entry: len(entry[1]))
        record = self._gone(queue.pop())
        if not queue:
            del self._queues[partition]
        return partition, record

    def of(self, partition: Partition) -> Iterable[Record]:
        """Return one partition's records, in the order of the queue."""
        return self._queues.get(partition, ())

    def remove(self, partition: Partition, start: int) -> list[Record]:
        """Remove and return a partition's records from the offset `start` on, the highest offset first."""
        queue = self._queues.pop(partition, deque())
        kept = deque(record for record in queue if record.offset < start)
        if kept:
            self._queues[partition] = kept
        removed = [self._gone(record) for record in queue if record.offset >= start]
        return sorted(removed, key=lambda record: record.offset, reverse=True)

    def _gone(self, record: Record) -> Record:
        self.records -= 1
        self.bytes -= len(record.value)
        self.cost -= record.cost
        return record


def _order(record: Record) -> tuple[int, int]:
    return record.urgency, record.offset
