"""The load: the number and bytes of the records that a stage has taken."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from workers.stage.partition import Partition
from workers.stage.record import Record
from workers.stage.sharing import Party


@dataclass(slots=True)
class Load:
    """Counts the records of one stage. Only this class writes `Partition.running` and `Partition.bytes`."""

    running: int = 0
    """The number of records that are dispatched and not yet complete."""
    bytes: int = 0
    """Bytes of the values of taken, unsettled records."""
    outside: Counter[Party] = field(default_factory=Counter)
    """The running records of each party that may wait for servers outside the fleet."""

    def take(self, partition: Partition, record: Record) -> None:
        """Add a record that was taken."""
        self._add(partition, len(record.value))

    def let_go(self, partition: Partition, record: Record) -> None:
        """Subtract a record that is settled or given back."""
        self._add(partition, -len(record.value))

    def begin(self, partition: Partition, record: Record) -> None:
        """Count a record of the partition as running, because the stage dispatches it."""
        partition.running += 1
        self.running += 1
        if record.outside is not None:
            partition.outside[record.outside] += 1
            self.outside[record.outside] += 1

    def end(self, partition: Partition, record: Record) -> None:
        """Count a record of the partition as no longer running, because the handler has returned."""
        partition.running -= 1
        self.running -= 1
        if record.outside is not None:
            _subtract(partition.outside, record.outside, 1)
            _subtract(self.outside, record.outside, 1)

    def forget(self, partition: Partition) -> None:
        """Subtract all records of a partition that another worker owns. The partition's own counts stay."""
        self.running -= partition.running
        self.bytes -= partition.bytes
        for party, records in partition.outside.items():
            _subtract(self.outside, party, records)

    def _add(self, partition: Partition, size: int) -> None:
        partition.bytes += size
        self.bytes += size


def _subtract(counts: Counter[Party], party: Party, records: int) -> None:
    """Subtract from a party's count. Forget a party without records, because a worker may see any number of parties."""
    counts[party] -= records
    if not counts[party]:
        del counts[party]
