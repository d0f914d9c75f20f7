"""A bounded mapping in which a tenant with many entries does not evict other tenants' entries."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Generic, TypeVar

Key = tuple[str, str]
"""A tenant, and one of its origins or URLs."""

V = TypeVar("V")


class TenantLru(Generic[V]):
    """A mapping of bounded size.

    If the mapping is full, the tenant with the most values loses its least recently used value. The cost of a call does
    not depend on the number of tenants.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._of: dict[str, OrderedDict[str, V]] = {}
        """Each tenant's values, the least recently used first."""
        self._having: defaultdict[int, dict[str, None]] = defaultdict(dict)
        """The tenants by their number of values."""
        self._largest = 0
        """The number of values of the tenant that has the most."""

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: Key) -> bool:
        tenant, own = key
        return own in self._of.get(tenant, ())

    def get(self, key: Key) -> V | None:
        """Return the value, and mark it as its tenant's most recently used value. None if the value is missing."""
        if key not in self:
            return None
        tenant, own = key
        self._of[tenant].move_to_end(own)
        return self._of[tenant][own]

    def put(self, key: Key, value: V) -> None:
        """Store a value as its tenant's most recently used value."""
        tenant, own = key
        values = self._of.setdefault(tenant, OrderedDict())
        if own not in values:
            self._count += 1
            self._moved(tenant, len(values), len(values) + 1)
        values[own] = value
        values.move_to_end(own)
        if self._count > self._most:
            most = next(iter(self._having[self._largest]))
            self.pop((most, next(iter(self._of[most]))))

    def pop(self, key: Key) -> V | None:
        """Remove and return a value; None if the value is missing."""
        if key not in self:
            return None
        tenant, own = key
        values = self._of[tenant]
        self._count -= 1
        self._moved(tenant, len(values), len(values) - 1)
        value = values.pop(own)
        if not values:
            del self._of[tenant]
        return value

    def _moved(self, tenant: str, before: int, after: int) -> None:
        """Move a tenant to another number of values.

        The numbers differ by one, so `_largest` also changes by one at most.
        """
        if before:
            del self._having[before][tenant]
            if not self._having[before]:
                del self._having[before]
        if after:
            self._having[after][tenant] = None
        self._largest = max(self._largest, after)
        if self._largest not in self._having:
            self._largest -= 1
