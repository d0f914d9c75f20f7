"""The partitions of a tenant's jobs, by shuffle sharding with rendezvous hashing, as in all producers of a fleet.

A tenant has a third of the partitions, at least 2, so that one tenant's flood does not fill all queues. The tenant
`default` has all.
"""

from __future__ import annotations

import hashlib

DEFAULT_TENANT = "default"


def partitions_of(tenant: str, partitions: int) -> tuple[int, ...]:
    """Return the tenant's partitions out of 0 to `partitions` - 1, ascending."""
    if tenant == DEFAULT_TENANT:
        return tuple(range(partitions))
    size = min(partitions, max(2, partitions // 3))
    heaviest = sorted(range(partitions), key=lambda partition: _weight(tenant, partition), reverse=True)
    return tuple(sorted(heaviest[:size]))


def _weight(tenant: str, partition: int) -> bytes:
    return hashlib.blake2b(f"{tenant}:{partition}".encode(), digest_size=8).digest()
