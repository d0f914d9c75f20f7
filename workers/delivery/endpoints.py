"""A bulkhead for each endpoint, so that a slow or dead one does not hold the process's window against all others.

An endpoint here is a (tenant, origin). So many attempts run at once, so many records wait briefly for one of them, and
what is beyond that is `EndpointBusy`: it is deferred to the smallest tier at once. Local to each process; a lock is not
needed, since all of it runs on one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from workers.delivery.settings import DeliverySettings

Endpoint = tuple[str, str]
"""Tenant and origin."""


class EndpointBusy(Exception):  # noqa: N818 - it names what happened
    """The endpoint has its share of this process."""


@dataclass(slots=True)
class _Load:
    """What an endpoint has of this process now."""

    running: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Endpoints:
    """Who may call which endpoint now. Remembers an endpoint only while something runs for it."""

    def __init__(self, settings: DeliverySettings) -> None:
        self._concurrency = settings.endpoint_concurrency
        self._queue = settings.endpoint_queue_records
        self._wait_seconds = settings.endpoint_wait_seconds
        self._loads: dict[Endpoint, _Load] = {}

    def __len__(self) -> int:
        """How many endpoints are being called."""
        return len(self._loads)

    @asynccontextmanager
    async def share(self, endpoint: Endpoint) -> AsyncIterator[None]:
        """Hold one of the endpoint's places. Raises EndpointBusy when none is, or gets, free."""
        load = self._loads.get(endpoint)
        if load is None:
            load = self._loads[endpoint] = _Load()
        if load.running < self._concurrency:
            load.running += 1
        else:
            await self._queue_up(endpoint, load)
        try:
            yield
        finally:
            self._leave(endpoint, load)

    async def _queue_up(self, endpoint: Endpoint, load: _Load) -> None:
        """Wait for a place that somebody leaves; it is then ours already, so that no newcomer takes it first."""
        if len(load.waiting) >= self._queue:
            raise EndpointBusy
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        load.waiting.append(place)
        try:
            async with asyncio.timeout(self._wait_seconds):
                await place
        except BaseException as error:
            if place.done() and not place.cancelled():
                # It became ours in the same moment as we were told to go: the next one has it.
                self._leave(endpoint, load)
            else:
                with suppress(ValueError):  # whoever left meanwhile has skipped it
                    load.waiting.remove(place)
            if isinstance(error, TimeoutError):
                raise EndpointBusy from None
            raise

    def _leave(self, endpoint: Endpoint, load: _Load) -> None:
        """Give our place to the first who waits for it; with the last place goes the memory of the endpoint."""
        while load.waiting:
            place = load.waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        load.running -= 1
        if load.running == 0:
            del self._loads[endpoint]
