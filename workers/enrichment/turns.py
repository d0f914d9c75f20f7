"""Places at which jobs take turns, so that neither one job nor one tenant keeps the others waiting.

A place that becomes free goes to the tenant that has the fewest, and of its jobs to the one that has the fewest; among
equals to who has waited or had one longest ago.

Where a place is had for long that is not enough: who comes next would wait for seconds. There some are kept: so many
for tenants that have none, and as many again for jobs that have none.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Asker:
    """One job, as it asks for places; it is nobody but itself, and its tenant's."""

    tenant: str


class Turns:
    """So many places, of which `kept` are for tenants that have none, and as many again for jobs that have none."""

    def __init__(self, places: int, *, kept: int = 0) -> None:
        self._free = places
        self._kept = kept
        self._had: Counter[str | Asker] = Counter()
        self._waiting: OrderedDict[str, OrderedDict[Asker, deque[asyncio.Future[None]]]] = OrderedDict()

    @property
    def is_idle(self) -> bool:
        """Nobody has a place or waits for one."""
        return not self._had and not self._waiting

    @asynccontextmanager
    async def place(self, asker: Asker) -> AsyncIterator[None]:
        """Have a place, once it is this job's turn."""
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
        """Give away what is free."""
        while self._free and (asker := self._next()) is not None:
            turn = self._first(asker)
            if not turn.cancelled():
                self._free -= 1
                self._had[asker.tenant] += 1
                self._had[asker] += 1
                turn.set_result(None)

    def _next(self) -> Asker | None:
        for tenant in sorted(self._waiting, key=self._had.__getitem__):
            for asker in sorted(self._waiting[tenant], key=self._had.__getitem__):
                if self._may_have(asker):
                    return asker
        return None

    def _may_have(self, asker: Asker) -> bool:
        if not self._had[asker.tenant]:
            return True
        return self._free > (2 * self._kept if self._had[asker] else self._kept)

    def _first(self, asker: Asker) -> asyncio.Future[None]:
        """Out of the job's line; who waits for nothing more is out of the tenant's."""
        jobs = self._waiting[asker.tenant]
        turn = jobs[asker].popleft()
        if not jobs[asker]:
            del jobs[asker]
        if not jobs:
            del self._waiting[asker.tenant]
        return turn

    def _take_back(self, asker: Asker) -> None:
        """Who had a place goes behind those who wait."""
        self._free += 1
        for holder in (asker.tenant, asker):
            self._had[holder] -= 1
            if not self._had[holder]:
                del self._had[holder]
        if asker.tenant in self._waiting:
            self._waiting.move_to_end(asker.tenant)
            if asker in self._waiting[asker.tenant]:
                self._waiting[asker.tenant].move_to_end(asker)
