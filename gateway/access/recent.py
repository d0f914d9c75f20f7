"""Values that were read lately, so that a request of a known client reads no database."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from telemetry.clock import Clock

Key = TypeVar("Key")
Value = TypeVar("Value")

MOST = 4096


class Recent(Generic[Key, Value]):
    """A cache of `most` values on one event loop. A value is at most `seconds` old from the start of its reading.

    Requests for a key whose value is being read wait for the same reading (single flight). An absent value, None, is
    not kept, because a stranger could otherwise fill the cache with names that do not exist.
    """

    def __init__(self, read: Callable[[Key], Awaitable[Value]], seconds: float, clock: Clock, most: int = MOST) -> None:
        self._read = read
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._kept: OrderedDict[Key, tuple[float, Value]] = OrderedDict()
        self._reading: dict[Key, asyncio.Task[Value]] = {}

    async def get(self, key: Key) -> Value:
        """Return the value, read again if it is too old. Raises the errors of `read`."""
        kept = self._kept.get(key)
        if kept is not None and self._clock.monotonic() - kept[0] < self._seconds:
            self._kept.move_to_end(key)
            return kept[1]
        reading = self._reading.get(key)
        if reading is None:
            reading = self._reading[key] = asyncio.create_task(self._fetch(key))
            reading.add_done_callback(lambda done: self._ended(key, done))
        # A client that goes away must not cancel the reading, for which other requests may wait.
        return await asyncio.shield(reading)

    def has(self, key: Key) -> bool:
        """True if the key had a value when it was last read, however long ago."""
        return key in self._kept

    def forget(self, key: Key) -> None:
        """Read the key again at the next request, also if it is being read now."""
        self._kept.pop(key, None)
        self._reading.pop(key, None)

    async def _fetch(self, key: Key) -> Value:
        started, this = self._clock.monotonic(), asyncio.current_task()
        value = await self._read(key)
        if value is not None and self._reading.get(key) is this:
            self._kept[key] = (started, value)
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return value

    def _ended(self, key: Key, done: asyncio.Task[Value]) -> None:
        if self._reading.get(key) is done:
            del self._reading[key]
        if not done.cancelled():
            done.exception()  # marks the error as read; otherwise asyncio logs the error if no request waits for it
