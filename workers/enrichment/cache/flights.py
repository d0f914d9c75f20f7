"""Single flight: concurrent callers that want the same work share one run of the work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(slots=True)
class _SharedFlight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


async def _awaited(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


class Flights(Generic[K, T]):
    """The running work, by key. The work is cancelled only when all callers that wait for it are cancelled."""

    def __init__(self) -> None:
        self._flights: dict[K, _SharedFlight[T]] = {}

    async def join(
        self,
        key: K,
        work: Callable[[], Awaitable[T]],
        seconds: float | None = None,
        meanwhile: Callable[[], T | None] = lambda: None,
    ) -> T:
        """Return the result of the work that runs under `key`; start `work` if none runs. Raises the work's errors.

        After `seconds`, a caller that cannot wait gets the result of `meanwhile` instead, unless that is None.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = _SharedFlight(asyncio.create_task(_awaited(work), name="cache-flight"))
            self._flights[key] = flight
            flight.task.add_done_callback(lambda _: self._landed(key, flight))
        flight.waiting += 1
        try:
            done, _ = await asyncio.wait((flight.task,), timeout=seconds)
            if not done and (found := meanwhile()) is not None:
                return found
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._landed(key, flight)
                flight.task.cancel()
                await asyncio.gather(flight.task, return_exceptions=True)

    def _landed(self, key: K, flight: _SharedFlight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # marks the error as retrieved: without a caller, asyncio would log the error
