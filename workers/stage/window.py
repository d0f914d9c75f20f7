"""The window: how much a stage takes on at once, in records, bytes and span."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from workers.stage.ledger import MAX_SPAN
from workers.stage.partition import Partition, Phase

SPAN_HIGH = MAX_SPAN * 3 // 4
SPAN_LOW = MAX_SPAN // 2
LEAST_PARKED = 512
"""Records. A resumed partition delivers after up to half a second; half of these have to last as long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a stage's window."""

    records: int = 1024
    """Records that the handler has at once; as many again, and at least LEAST_PARKED, may be parked behind them."""
    bytes: int = 256 * 1024 * 1024
    """Bytes of record values that are taken and not settled."""


class Window:
    """Counts what is taken, and says which partitions to fetch from.

    With hysteresis, since a pause throws away what was prefetched.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.running = 0
        """Dispatched, and the handler has not returned."""
        self.parked = 0
        self.bytes = 0
        self._parking = max(limits.records, LEAST_PARKED)
        self._full = False

    @property
    def full(self) -> bool:
        """Whether nothing more is to be taken, whatever the partition."""
        high = self.parked >= self._parking or self.bytes >= self.limits.bytes
        low = self.parked <= self._parking // 2 and self.bytes <= self.limits.bytes * 3 // 4
        self._full = high or (self._full and not low)
        return self._full

    @property
    def batch(self) -> int:
        """How many records to ask for; never less than one, or rebalances would go unheard."""
        return max(1, min(500, self._parking - self.parked))

    def wants_pause(self, partition: Partition, *, full: bool, waiting: bool) -> bool:
        """Whether a partition is not to be fetched from now. `waiting`: its first parked record is not due yet."""
        if full or waiting or partition.phase is not Phase.OPEN:
            return partition.phase is not Phase.ASSIGNED
        if partition.rewind_to is not None and not partition.paused:
            return True  # seeking is done on the way from paused to resumed
        return partition.ledger.span >= (SPAN_LOW if partition.paused else SPAN_HIGH)

    def changes(
        self, partitions: Iterable[Partition], *, full: bool, waiting: Iterable[Partition]
    ) -> tuple[list[Partition], list[Partition]]:
        """Which partitions to pause and which to resume."""
        held = set(waiting)
        pause, resume = [], []
        for partition in partitions:
            wanted = self.wants_pause(partition, full=full, waiting=partition in held)
            if wanted and not partition.paused:
                pause.append(partition)
            elif partition.paused and not wanted:
                resume.append(partition)
        return pause, resume
