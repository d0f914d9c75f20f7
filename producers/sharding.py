"""Chooses the partitions of a tenant's jobs, by shuffle sharding with rendezvous hashing, and each job's partition.

Each tenant has k of the N partitions, so that one tenant's flood fills k queues and not all. Two tenants rarely share
all of their partitions; with plain sharding, all tenants of a shard would. k is a third of N, but at least 2: of 12
partitions each tenant has 4, and there are 495 different choices. The weight of a (tenant, partition) pair is a hash of
both, and a tenant gets the k heaviest partitions. So a new partition replaces at most one of a tenant's partitions, or
joins them if k grows; it moves nothing else.

Jobs without a tenant belong to `default`, which uses all partitions: a fleet with a single tenant needs no shielding.

Jobs with the same prompt prefix go to one partition of the shard (`schemas.affinity`), so that one worker caches the
prefix. Other jobs go to the partition with the fewest recent jobs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from schemas.affinity import place_of, prefix_key
from schemas.job import DEFAULT_TENANT

LATELY_JOBS = 1000
"""All counts of a shard are halved after this number of jobs for each partition, because most older jobs are answered
by then."""
MOST_SHARDS = 10_000
"""Cap on the number of shards whose counts are in memory; the least recently used shard is evicted."""


def shard_of(tenant: str, partitions: int) -> tuple[int, ...]:
    """Return the tenant's partitions out of 0 to `partitions` - 1, ascending.

    All processes compute the same partitions.
    """
    if tenant == DEFAULT_TENANT:
        return tuple(range(partitions))
    size = min(partitions, max(2, partitions // 3))
    heaviest = sorted(range(partitions), key=lambda partition: _weight(tenant, partition), reverse=True)
    return tuple(sorted(heaviest[:size]))


def _weight(tenant: str, partition: int) -> bytes:
    return hashlib.blake2b(f"{tenant}:{partition}".encode(), digest_size=8).digest()


class Partitioner:
    """Chooses the partition of each job, and counts the jobs by partition. Only one thread may use a chooser."""

    def __init__(self) -> None:
        self._shards: OrderedDict[tuple[str, str, int], _Shard] = OrderedDict()

    def partition(self, topic: str, tenant: str, partitions: int, value: bytes | None) -> int:
        """Return the partition, out of `partitions`, of a tenant's job with this record value."""
        name = topic, tenant, partitions
        shard = self._shards.get(name)
        if shard is None:
            shard = self._shards[name] = _Shard(shard_of(tenant, partitions))
            if len(self._shards) > MOST_SHARDS:
                self._shards.popitem(last=False)
        else:
            self._shards.move_to_end(name)
        return shard.next(prefix_key(value))


class _Shard:
    """One tenant's partitions of one topic, with the number of recent jobs of each."""

    def __init__(self, partitions: tuple[int, ...]) -> None:
        self._partitions = partitions
        self._jobs = [0] * len(partitions)

    def next(self, key: bytes | None) -> int:
        """Return the partition of a job with this key, and count the job."""
        index = place_of(key, self._partitions, self._jobs)
        self._jobs[index] += 1
        if sum(self._jobs) >= LATELY_JOBS * len(self._jobs):
            self._jobs = [jobs // 2 for jobs in self._jobs]
        return self._partitions[index]
