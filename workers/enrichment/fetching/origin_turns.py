"""Limits how many jobs of one tenant fetch from one origin.

So jobs at a hung server leave places in memory to the tenant's other jobs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from telemetry.logs import origin_of
from workers.enrichment.turns import Asker, Turns


class OriginTurns:
    """At most `places` jobs of one tenant fetch from the same origin at once."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._turns: dict[tuple[str, str], Turns] = {}
        """The turns at each origin; the keys are tenant and origin."""

    @asynccontextmanager
    async def at(self, urls: Iterable[str], asker: Asker) -> AsyncIterator[None]:
        """Wait until the job may fetch from the origins of all URLs. The job may fetch until the context ends.

        Call this before the job waits for a place in memory: otherwise jobs at a hung server would keep their places.
        """
        async with AsyncExitStack() as stack:
            for origin in sorted({origin_of(url) for url in urls}):  # all jobs use this order, so that none deadlocks
                await stack.enter_async_context(self._at_one(origin, asker))
            yield

    @asynccontextmanager
    async def _at_one(self, origin: str, asker: Asker) -> AsyncIterator[None]:
        key = asker.tenant, origin
        turns = self._turns.setdefault(key, Turns(self._places))
        try:
            async with turns.place(asker):
                yield
        finally:
            if turns.is_idle:
                self._turns.pop(key, None)
