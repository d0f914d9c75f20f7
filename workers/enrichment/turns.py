"""A fair queue for places, so that no single job or tenant can make the others wait.

A free place goes to the tenant with the fewest places, and among this tenant's jobs to the job with the fewest places.
Among tenants or jobs with equally many places, the place goes to the one that joined the queue, or last gave back a
place, longest ago.

If jobs keep their places for long, a new job might have to wait for seconds. So `kept` places are reserved for tenants
with few places, and another `kept` places for jobs without a place. A tenant has few places if more places are free
than the tenant has. So a tenant that comes later gets half of the free places at once for its jobs (dynamic thresholds,
Choudhury and Hahne 1998).
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True, eq=False)
class Asker:
    """One job that asks for places and pages.

    Instances are compared by identity, so that two jobs with the same values stay distinct.
    """

    tenant: str
    max_age_seconds: float = inf
    """The greatest age of a cached page that the job accepts."""


class Turns:
    """A fixed number of places.

    `kept` places are reserved for tenants that have fewer places than there are free places. Another `kept` places are
    reserved for jobs without a place.
    """

    def __init__(self, places: int, *, kept: int = 0) -> None:
        self._free = places
        self._kept = kept
        self._had: Counter[str | Asker] = Counter()
        self._waiting: OrderedDict[str, OrderedDict[Asker, deque[asyncio.Future[None]]]] = OrderedDict()

    @property
    def is_idle(self) -> bool:
        """True if no job has a place or waits for one."""
        return not self._had and not self._waiting

    @asynccontextmanager
    async def place(self, asker: Asker) -> AsyncIterator[None]:
        """Wait for this job's turn. The job then has a place until the context ends."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(asker.tenant, OrderedDict()).setdefault(asker, deque()).append(turn)
        self._give()
        try:
            await turn
            yield
        finally:
            if not turn.cancelled():
                self._take_back(asker)
            self._give()

    def _give(self) -> None:
        """Hand out the free places."""
        while self._free and (asker := self._next()) is not None:
            turn = self._first(asker)
            if not turn.cancelled():
                self._free -= 1
                self._had[asker.tenant] += 1
                self._had[asker] += 1
                turn.set_result(None)

    def _next(self) -> Asker | None:
        for tenant in sorted(self._waiting, key=self._had.__getitem__):
            if self._had[tenant] >= self._free and self._free <= self._kept:
                continue  # saves a slow search among the tenant's jobs, which may be thousands
            asker = min(self._waiting[tenant], key=self._had.__getitem__)
            if not self._had[asker] or self._free > 2 * self._kept:
                return asker
        return None

    def _first(self, asker: Asker) -> asyncio.Future[None]:
        """Remove and return the job's first request.

        If the job has no further requests, remove it from its tenant's queue.
        """
        jobs = self._waiting[asker.tenant]
        turn = jobs[asker].popleft()
        if not jobs[asker]:
            del jobs[asker]
        if not jobs:
            del self._waiting[asker.tenant]
        return turn

    def _take_back(self, asker: Asker) -> None:
        """Free the job's place, and move the job and its tenant to the ends of their queues."""
        self._free += 1
        for holder in (asker.tenant, asker):
            self._had[holder] -= 1
            if not self._had[holder]:
                del self._had[holder]
        if asker.tenant in self._waiting:
            self._waiting.move_to_end(asker.tenant)
            if asker in self._waiting[asker.tenant]:
                self._waiting[asker.tenant].move_to_end(asker)
