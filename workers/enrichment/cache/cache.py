"""Returns a page from the nearest level that has it, or reads the page once for all waiting jobs.

If a page's server is unavailable, the cache serves a stale copy with a note (RFC 5861), if it has a copy. Failures to
read a page are cached for a while, too.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from math import inf
from typing import Any, Final, Generic, TypeVar

from cachetools import LRUCache

from telemetry.clock import Clock, Deadline
from telemetry.series import ClosedCounter
from workers.enrichment.cache.entry import CacheEntry, Key, encoded
from workers.enrichment.cache.levels import Disk, Level, Shared
from workers.enrichment.evidence import Unreadable
from workers.enrichment.settings import CacheSettings

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


_SKEW_SECONDS: Final = 60.0
"""Largest expected clock skew between machines.

Each read also asks for invalidations that are up to this much older than the last read, because a machine that writes
invalidations may have a slow clock.
"""
_PATIENCE: Final = 0.9
"""The fraction of a job's remaining time for which the job waits for a page's server before it gets a stale copy."""
_PATIENCE_FOR_THE_REST: Final = 0.97
"""The fraction after which a job takes the part of a page that is read, such as a text without its pictures."""
_PENDING: Final = 256
"""Cap on the pending writes to shared levels. Beyond the cap, a page is kept only in this process's memory."""
_PLACE_BYTES: Final = 512
"""Approximate memory that an entry takes besides its value: for the key, and for its place in the tables."""

Partly = Callable[[], CacheEntry]
"""Returns the part of a page that is read already. Raises Unreadable if that part has no text."""
Read = Callable[[CacheEntry | None, Callable[[Partly], None]], Awaitable[CacheEntry]]
"""A function that gets the cache's older copy of a page or None, reads the page, and returns the new entry.

While the page is being read, the function may hand over a `Partly` for jobs whose time ends before. Raises Unreadable.
"""


@dataclass(frozen=True, slots=True)
class Reading:
    """A page for a job. `answer` has the title, text and particulars that a pool member extracted from the page."""

    url: str
    answer: dict[str, Any]
    older: str | None = None
    """The reason for serving an older copy; None for a current page."""


class Cache:
    """The cache: this process's memory, and behind it the shared `levels`, nearest first."""

    def __init__(
        self, settings: CacheSettings, clock: Clock, lookups: ClosedCounter, levels: Sequence[Level] = ()
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._memory = Memory(settings.memory_bytes)
        self._in_memory = lookups.begin("memory")
        self._shared = [Shared(level, settings, clock, lookups) for level in levels]
        self._flights: Flights[Key, CacheEntry] = Flights()
        self._partly: dict[Key, Partly] = {}
        """The parts of pages that are being read."""
        self._invalidated: dict[str, float] = {}
        self._hearing = asyncio.Lock()
        self._heard_at = float("-inf")
        self._heard_until = [0.0] * len(self._shared)
        self._writing: set[asyncio.Task[None]] = set()

    async def read(
        self, url: str, scope: str, read: Read, patience_seconds: float, max_age_seconds: float = inf
    ) -> Reading:
        """Return the page at this URL from the cache that all jobs of `scope` share, or else read the page.

        Raises Unreadable if the page cannot be read, or if a failure to read it is cached. A copy older than
        `max_age_seconds` is treated as stale. A page that a job with far less time could not read whole is read again.
        """
        key = Key.of(url, scope)
        known = await self._known(key)
        is_young = known is not None and self._clock.time() - known.asked_at <= max_age_seconds
        if known is not None and is_young and self._is_fresh(known) and known.suffices(patience_seconds):
            return _served(known)
        patience = Deadline.after(self._clock, patience_seconds)
        entry = await self._joined(key, url, known, read, patience)
        if not entry.suffices(patience_seconds):
            entry = await self._joined(key, url, entry, read, patience)
        return _served(entry)

    async def _joined(self, key: Key, url: str, known: CacheEntry | None, read: Read, patience: Deadline) -> CacheEntry:
        """Read the page, together with all jobs that wait for it; at the end of this job's time, take what is there."""
        older = known if known is not None and known.answer is not None else None
        late = older if older is not None and older.may_be_served_late else None

        def meanwhile() -> CacheEntry | None:
            if late is not None:
                return replace(late, reason="its server was late")
            partly = self._partly.get(key)
            return partly() if partly is not None else None

        seconds = patience.remaining * (_PATIENCE_FOR_THE_REST if late is None else _PATIENCE)
        return await self._flights.join(key, lambda: self._renewed(key, url, older, read, patience), seconds, meanwhile)

    async def close(self) -> None:
        """Finish the pending writes, and close the levels."""
        await asyncio.gather(*self._writing, return_exceptions=True)
        for level in self._shared:
            await level.close()

    # -- reading again -------------------------------------------------------------------------------------------

    async def _renewed(
        self, key: Key, url: str, older: CacheEntry | None, read: Read, patience: Deadline
    ) -> CacheEntry:
        """Read the page again, and cache and return the new entry.

        If the page's server is unavailable and the older copy may be served, cache and return the older copy. After any
        other failure, cache and return an entry with the reason. Raises Unreadable for a failure that may not be
        cached.
        """
        asked_at, patience_seconds, is_ours = self._clock.time(), patience.remaining, False
        try:
            entry = await read(older, lambda partly: self._partly.update({key: partly}))
        except Unreadable as unreadable:
            is_ours = unreadable.is_ours
            until = self._clock.time() + self._settings.negative_seconds
            cut_seconds = patience_seconds if is_ours else None
            if older is not None and older.may_be_served_late and unreadable.is_outage:
                entry = replace(older, fresh_until=until, reason=str(unreadable), cut_seconds=cut_seconds)
            elif not unreadable.is_lasting:
                raise
            else:
                entry = CacheEntry(asked_at, until, until, url, url, reason=str(unreadable), cut_seconds=cut_seconds)
        finally:
            self._partly.pop(key, None)
        self._keep(key, entry, is_shared=not is_ours)
        return entry

    def _keep(self, key: Key, entry: CacheEntry, *, is_shared: bool) -> None:
        seconds = entry.kept_until - self._clock.time()
        if seconds <= 0:
            return
        value = encoded(entry)
        if len(value) > self._settings.entry_bytes:
            self._memory.drop(key)
            return
        self._memory.put(key, entry)
        if is_shared and len(self._writing) < _PENDING:
            for level in self._shared:
                self._write(level.put(key, value, seconds))

    def _write(self, put: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(put, name="cache-put")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    # -- looking up ----------------------------------------------------------------------------------------------

    async def _known(self, key: Key) -> CacheEntry | None:
        """Return the fresh entry of the nearest level that has one, or else the stale entry that expired last."""
        await self._hear()
        best = self._valid(self._memory.get(key))
        self._in_memory["miss" if best is None else "hit" if self._is_fresh(best) else "stale"].inc()
        for level in self._shared:
            if best is not None and self._is_fresh(best):
                return best
            found = self._valid(await level.get(key))
            if found is not None and (best is None or found.fresh_until > best.fresh_until):
                best = found
                self._memory.put(key, found)
        return best

    def _is_fresh(self, entry: CacheEntry) -> bool:
        return entry.fresh_until > self._clock.time()

    def _valid(self, entry: CacheEntry | None) -> CacheEntry | None:
        """Return the entry, or None if it is past `kept_until` or was invalidated."""
        if entry is None or entry.kept_until <= self._clock.time():
            return None
        if self._invalidated and any(self._invalidated.get(one, 0.0) >= entry.asked_at for one in entry.targets):
            return None
        return entry

    async def _hear(self) -> None:
        """Read the invalidations of the shared levels, at most once in `pause_seconds`."""
        if not self._shared or self._clock.monotonic() - self._heard_at < self._settings.pause_seconds:
            return
        async with self._hearing:
            if self._clock.monotonic() - self._heard_at < self._settings.pause_seconds:
                return
            for index, level in enumerate(self._shared):
                now = self._clock.time()
                told = await level.invalidations(self._heard_until[index] - _SKEW_SECONDS)
                if told is not None:
                    self._heard_until[index] = now
                    self._learn(told)
            self._heard_at = self._clock.monotonic()

    def _learn(self, told: Mapping[str, float]) -> None:
        for target, at in told.items():
            self._invalidated[target] = max(at, self._invalidated.get(target, 0.0))
        oldest = self._clock.time() - longest_kept_seconds(self._settings)
        if any(at < oldest for at in self._invalidated.values()):
            self._invalidated = {target: at for target, at in self._invalidated.items() if at >= oldest}


def shared_levels(settings: CacheSettings, clock: Clock) -> list[Level]:
    """Return the shared levels that the settings turn on, nearest first. Nothing is connected yet."""
    levels: list[Level] = []
    if settings.redis_url is not None:
        from workers.enrichment.cache.redis_level import RedisLevel

        levels.append(RedisLevel(settings.redis_url.get_secret_value(), settings))
    if settings.disk_path is not None:
        levels.append(Disk(settings.disk_path, settings, clock))
    return levels


def longest_kept_seconds(settings: CacheSettings) -> float:
    """Return the longest time, in seconds, for which any page stays cached."""
    return max(settings.fresh_seconds, settings.longest_fresh_seconds) + settings.stale_seconds + _SKEW_SECONDS


def _served(entry: CacheEntry) -> Reading:
    if entry.answer is None:
        raise Unreadable(entry.reason or "it could not be read")
    return Reading(entry.url, entry.answer, entry.reason)


class Memory:
    """Level 1: this process's memory. An LRU cache of unpacked entries, limited by their size in memory."""

    def __init__(self, limit_bytes: int) -> None:
        self._entries: LRUCache[Key, CacheEntry] = LRUCache(limit_bytes, getsizeof=_size)

    def get(self, key: Key) -> CacheEntry | None:
        """Return the entry under the key, fresh or stale."""
        return self._entries.get(key)

    def put(self, key: Key, entry: CacheEntry) -> None:
        """Store the entry, unless it alone exceeds the limit. If space is short, evict other entries."""
        self.drop(key)
        with suppress(ValueError):  # the entry alone exceeds the limit
            self._entries[key] = entry

    def drop(self, key: Key) -> None:
        """Drop the entry under the key."""
        self._entries.pop(key, None)


def _size(entry: CacheEntry) -> int:
    return _PLACE_BYTES + sys.getsizeof(entry) + _held_bytes(astuple(entry))


def _held_bytes(value: object) -> int:
    """Return the size in bytes of a value and all values inside it; an object that occurs twice is counted twice."""
    held: tuple[object, ...] = ()
    if isinstance(value, dict):
        held = (*value, *value.values())
    elif isinstance(value, list | tuple):
        held = tuple(value)
    return sys.getsizeof(value) + sum(map(_held_bytes, held))
