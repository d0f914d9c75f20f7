"""The contents of one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from confluent_kafka import TopicPartition

from workers.stage.partition import Partition
from workers.stage.progress import Progress
from workers.stage.record import Output

OUTPUTS_A_HOME = 100


@dataclass(slots=True)
class Batch:
    """The outputs of a transaction, and the offsets in each partition that are done once it is committed."""

    offsets: defaultdict[Partition, list[int]] = field(default_factory=lambda: defaultdict(list))
    outputs: list[Output] = field(default_factory=list)
    progress: dict[Partition, Progress] = field(default_factory=dict)
    """The progress to commit. It is fixed when the commit begins, because partitions may see more records meanwhile."""

    def homes(self, turn: int) -> list[int]:
        """Return partition numbers for outputs that name no partition. Another `turn` gives other numbers.

        The numbers are those of source partitions, so that a dead worker's open transaction holds back only its own
        partitions. A transaction uses few numbers, since each number costs a request, an end marker, and a fetch of
        every reader. (librdkafka sends one request for each partition.)
        """
        numbers = sorted({partition.number for partition, offsets in self.offsets.items() if offsets})
        start = turn % max(1, len(numbers))
        return (numbers[start:] + numbers[:start])[: 1 + len(self.outputs) // OUTPUTS_A_HOME]


def positions(progress_of: Mapping[Partition, Progress]) -> list[TopicPartition]:
    """Return the offset to commit for each partition, with the partition's progress as metadata."""
    return [
        TopicPartition(partition.topic, partition.number, progress.base, progress.encode())
        for partition, progress in progress_of.items()
    ]
