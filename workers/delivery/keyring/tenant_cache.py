"""A cache of objects made from tenants' keys, valid until the keys change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")


class TenantCache(Generic[Made]):
    """One value per tenant, for at most `size` tenants. A full cache is emptied, because a value is made in 0.2 ms.

    Threads may share a cache. If two threads make one tenant's value at once, the cache keeps one of the two values.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._made: dict[str, tuple[Made, float]] = {}

    def get(self, tenant: str, now: float, make: Callable[[], Made], change: Callable[[], float]) -> Made:
        """Return the tenant's value.

        `make` makes the value, and `change` returns the Unix second from which the value is stale.
        """
        made, until = self._made.get(tenant, (None, 0.0))
        if made is None or now >= until:
            made = make()
            if len(self._made) >= self._size:
                self._made.clear()
            self._made[tenant] = (made, change())
        return made
