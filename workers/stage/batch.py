"""What one transaction carries."""

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
    """For each partition the offsets that the transaction makes done, and all outputs."""

    offsets: defaultdict[Partition, list[int]] = field(default_factory=lambda: defaultdict(list))
    outputs: list[Output] = field(default_factory=list)
    progress: dict[Partition, Progress] = field(default_factory=dict)
    """The progress that is committed, once the batch is on its way: partitions may see more records meanwhile."""

    def homes(self, turn: int) -> list[int]:
        """Return partition numbers for outputs that name none; another choice each turn.

        They are numbers of sources, so that a dead worker's open transaction holds back only its own partitions. They
        are few, since each costs a request of its own (librdkafka sends no two partitions in one), an end marker, and
        a fetch of every reader.
        """
        numbers = sorted({partition.number for partition, offsets in self.offsets.items() if offsets})
        start = turn % max(1, len(numbers))
        return (numbers[start:] + numbers[:start])[: 1 + len(self.outputs) // OUTPUTS_A_HOME]


def positions(progress_of: Mapping[Partition, Progress]) -> list[TopicPartition]:
    """Return the offsets to commit, each with its progress as metadata."""
    return [
        TopicPartition(partition.topic, partition.number, progress.base, progress.encode())
        for partition, progress in progress_of.items()
    ]
