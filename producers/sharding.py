"""The partitions of a tenant's jobs, by shuffle sharding with rendezvous hashing.

A tenant maps to k of the N partitions, so that one tenant's flood stands in k queues and not in all. Two tenants share
all of their partitions only by rare chance, which plain sharding cannot offer. k is a third of N, at least 2: of 12
partitions each tenant has 4, and there are 495 different choices. The weight of a (tenant, partition) pair is a hash of
both, and the k heaviest are taken: a partition that is added takes at most one place in a tenant's choice, unless it
makes k grow, and moves nothing else.

Jobs without a tenant belong to `default`. As the only tenant it has all partitions: there is none to shield from it.
"""

from __future__ import annotations

import hashlib

from schemas.job import DEFAULT_TENANT


def shard_of(tenant: str, partitions: int) -> tuple[int, ...]:
    """The tenant's partitions out of 0 to `partitions` - 1, ascending; the same in every process."""
    if tenant == DEFAULT_TENANT:
        return tuple(range(partitions))
    size = min(partitions, max(2, partitions // 3))
    heaviest = sorted(range(partitions), key=lambda partition: _weight(tenant, partition), reverse=True)
    return tuple(sorted(heaviest[:size]))


def _weight(tenant: str, partition: int) -> bytes:
    return hashlib.blake2b(f"{tenant}:{partition}".encode(), digest_size=8).digest()
