"""Chooses the partitions of a tenant's jobs, by shuffle sharding with rendezvous hashing.

Each tenant has k of the N partitions, so that one tenant's flood fills k queues and not all. Two tenants rarely share
all of their partitions; with plain sharding, all tenants of a shard do. k is a third of N, but at least 2: of 12
partitions each tenant has 4, and there are 495 different choices. The weight of a (tenant, partition) pair is a hash of
both, and a tenant gets the k heaviest partitions. So a new partition replaces at most one of a tenant's partitions,
unless it makes k grow, and moves nothing else.

Jobs without a tenant belong to `default`, which uses all partitions: a fleet with a single tenant needs no shielding.
"""

from __future__ import annotations

import hashlib

from schemas.job import DEFAULT_TENANT


def shard_of(tenant: str, partitions: int) -> tuple[int, ...]:
    """Return the tenant's partitions out of 0 to `partitions` - 1, ascending; equal in every process."""
    if tenant == DEFAULT_TENANT:
        return tuple(range(partitions))
    size = min(partitions, max(2, partitions // 3))
    heaviest = sorted(range(partitions), key=lambda partition: _weight(tenant, partition), reverse=True)
    return tuple(sorted(heaviest[:size]))


def _weight(tenant: str, partition: int) -> bytes:
    return hashlib.blake2b(f"{tenant}:{partition}".encode(), digest_size=8).digest()
