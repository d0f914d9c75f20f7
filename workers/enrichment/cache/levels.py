"""The interface of a level, and a wrapper that adds a timeout, a pause after each failure, and counters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Protocol, TypeVar

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.series import ClosedCounter
from workers.enrichment.cache.entry import CacheEntry, Key, decoded
from workers.enrichment.cache.settings import CacheSettings

log = get_logger()
T = TypeVar("T")


class LevelFailed(Exception):  # noqa: N818 - named after the event
    """A level failed. The text gives the reason, without addresses."""


class Level(Protocol):
    """A store of entries outside of this process. Every method raises LevelFailed."""

    name: str

    async def get(self, key: Key) -> bytes | None:
        """Return the value under this key; None if the value is missing or expired."""
        ...

    async def put(self, key: Key, value: bytes, seconds: float) -> None:
        """Store the value for `seconds`. The value replaces an earlier one."""
        ...

    async def invalidate(self, target: str, at: float, seconds: float) -> None:
        """Invalidate the entries of `target` whose pages were requested at `at` (Unix seconds) or earlier.

        The invalidation applies to all processes that share the level. The level forgets the invalidation after
        `seconds`.
        """
        ...

    async def invalidations(self, since: float) -> Mapping[str, float]:
        """Return the targets invalidated at `since` (Unix seconds) or later, each with that time."""
        ...

    async def close(self) -> None:
        """Close connections and files."""
        ...


class Shared:
    """Wraps a level so that callers see no error if the level is slow, is unavailable or returns invalid bytes."""

    def __init__(self, level: Level, settings: CacheSettings, clock: Clock, lookups: ClosedCounter) -> None:
        self._level = level
        self._settings = settings
        self._clock = clock
        self._away_until = 0.0
        self._well = True
        self._lookups = lookups.begin(level.name)

    async def get(self, key: Key) -> CacheEntry | None:
        """Return the entry under the key, fresh or stale; None if the entry is missing or the level fails."""
        if self._is_away:
            self._lookups["away"].inc()
            return None
        try:
            value = await self._asked(self._level.get(key))
            found = decoded(value) if value is not None else None
        except (LevelFailed, ValueError):
            self._lookups["error"].inc()
            return None
        self._lookups[self._result(found)].inc()
        return found

    def _result(self, entry: CacheEntry | None) -> str:
        if entry is None:
            return "miss"
        return "hit" if entry.fresh_until > self._clock.time() else "stale"

    async def put(self, key: Key, value: bytes, seconds: float) -> None:
        """Store the value; ignore a failure of the level."""
        if not self._is_away:
            try:
                await self._asked(self._level.put(key, value, seconds))
            except LevelFailed:
                return

    async def invalidations(self, since: float) -> Mapping[str, float] | None:
        """Return the targets invalidated at `since` or later, each with that time; None if the level fails."""
        if self._is_away:
            return None
        try:
            return await self._asked(self._level.invalidations(since))
        except LevelFailed:
            return None

    async def close(self) -> None:
        """Close connections and files."""
        try:
            async with asyncio.timeout(self._settings.answer_seconds * 4):
                await self._level.close()
        except (LevelFailed, TimeoutError):
            log.warning("A level of the cache did not close.", action="cache-not-closed", level=self._level.name)

    @property
    def _is_away(self) -> bool:
        return self._clock.monotonic() < self._away_until

    async def _asked(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._settings.answer_seconds):
                found = await answer
        except (LevelFailed, TimeoutError) as failed:
            self._away_until = self._clock.monotonic() + self._settings.pause_seconds
            self._say_ill(str(failed) or "it did not answer in time")
            raise LevelFailed from None
        if not self._well:
            self._well = True
            log.info("A level of the cache is back.", action="cache-back", level=self._level.name)
        return found

    def _say_ill(self, why: str) -> None:
        if self._well:
            self._well = False
            log.warning("A level of the cache is away.", action="cache-away", level=self._level.name, reason=why)
