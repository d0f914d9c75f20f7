"""Partitions and suspects, moved step by step as the stage would move them."""

from __future__ import annotations

from workers.stage.isolation import Isolation
from workers.stage.partition import Partition
from workers.stage.progress import Progress
from workers.stage.record import Record

FIRST_WINDOW = 1000
NO_BOUND = 1 << 30


def opened(number: int = 0, progress: Progress | None = None, window: int = FIRST_WINDOW) -> Partition:
    partition = Partition("requests", number, 1, 0.0)
    partition.open(progress or Progress(0), window)
    return partition


def record(offset: int, partition: Partition | None = None) -> Record:
    return Record("requests", partition.number if partition else 0, offset, b"")


def taken(isolation: Isolation, partition: Partition, offsets: range | list[int]) -> list[int]:
    """Take these records; return those that are not suspects."""
    free = []
    for offset in offsets:
        partition.ledger.take(offset)
        if not isolation.suspect(partition, record(offset, partition)):
            free.append(offset)
    return free


def crashed(isolation: Isolation, partition: Partition, offsets: range | list[int]) -> None:
    """Report these records as running in the process or engine that died."""
    for offset in offsets:
        partition.ledger.take(offset)
    isolation.crashed([(partition, record(offset, partition)) for offset in offsets])


def dispatched(isolation: Isolation) -> list[int]:
    """Mark the next cohort as committed and dispatched; return the offsets of its records."""
    cohort = isolation.next_cohort(NO_BOUND)
    if cohort is None:
        return []
    cohort.committed = cohort.dispatched = True
    return [member.offset for _, member in cohort.members]


def acquitted(isolation: Isolation, partition: Partition) -> None:
    """Settle all records of the cohorts under trial."""
    offsets = [member.offset for cohort in isolation.cohorts for _, member in cohort.members]
    partition.settle(offsets, partition.progress(offsets))
    for offset in offsets:
        isolation.settled(partition, offset)


def answered(isolation: Isolation, partition: Partition, offsets: list[int]) -> None:
    """Complete and settle these records."""
    isolation.completed()
    partition.settle(offsets, partition.progress(offsets))
    for offset in offsets:
        isolation.settled(partition, offset)


def reopened(partition: Partition) -> Partition:
    """The partition as its next owner opens it, after its worker was killed."""
    committed = partition.progress([])
    return opened(partition.number, Progress.decode(committed.base, committed.encode()))
