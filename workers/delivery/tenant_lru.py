"""A bounded mapping of what belongs to tenants, in which one tenant's many things push out no other's."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Generic, TypeVar

Key = tuple[str, str]
"""A tenant, and what is its own: an origin, or a URL."""

V = TypeVar("V")


class TenantLru(Generic[V]):
    """So many values at most. Where there are more, the tenant that has most loses what was asked for longest ago.

    A call takes as long with ten thousand tenants as with one.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._of: dict[str, OrderedDict[str, V]] = {}
        """What each tenant has, asked for longest ago first."""
        self._having: defaultdict[int, dict[str, None]] = defaultdict(dict)
        """The tenants that have so many."""
        self._largest = 0
        """How many the tenant has that has most."""

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: Key) -> bool:
        tenant, own = key
        return own in self._of.get(tenant, ())

    def get(self, key: Key) -> V | None:
        """What is remembered, and from now on as long as anything of its tenant's."""
        if key not in self:
            return None
        tenant, own = key
        self._of[tenant].move_to_end(own)
        return self._of[tenant][own]

    def put(self, key: Key, value: V) -> None:
        """Remember it, as what was asked for last."""
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
        """Forget it."""
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
        """The tenant has one more or one less, so the largest number is another by one at most."""
        if before:
            del self._having[before][tenant]
            if not self._having[before]:
                del self._having[before]
        if after:
            self._having[after][tenant] = None
        self._largest = max(self._largest, after)
        if self._largest not in self._having:
            self._largest -= 1
