"""How much of a process its records take up."""

from __future__ import annotations

from dataclasses import dataclass

from workers.stage.partition import Partition
from workers.stage.record import Record


@dataclass(slots=True)
class Load:
    """Sums over the partitions of one stage. The only writer of `Partition.running` and `Partition.bytes`."""

    running: int = 0
    """Records that the handler has: dispatched, and not returned."""
    bytes: int = 0
    """Bytes of record values that are taken and not settled."""

    def take(self, partition: Partition, record: Record) -> None:
        """Count a record that was taken."""
        self._add(partition, len(record.value))

    def let_go(self, partition: Partition, record: Record) -> None:
        """Count a record no longer: it is settled, or given back."""
        self._add(partition, -len(record.value))

    def begin(self, partition: Partition) -> None:
        """Count a record of the partition that the handler is given."""
        partition.running += 1
        self.running += 1

    def end(self, partition: Partition) -> None:
        """Count a record of the partition from which the handler has returned."""
        partition.running -= 1
        self.running -= 1

    def forget(self, partition: Partition) -> None:
        """Count nothing of a partition that another worker owns. Its own counts stay as they are."""
        self.running -= partition.running
        self.bytes -= partition.bytes

    def _add(self, partition: Partition, size: int) -> None:
        partition.bytes += size
        self.bytes += size
