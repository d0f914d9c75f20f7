"""The levels behind a process's memory: the wrapper that keeps their faults from jobs, and an SQLite file.

`redis_level` has the level that all workers of a fleet share.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, TypeVar

from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.series import ClosedCounter
from workers.enrichment.cache.entry import CacheEntry, Key, decoded
from workers.enrichment.settings import CacheSettings

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


_SCHEMA: Final = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = OFF;
CREATE TABLE IF NOT EXISTS entries (
    key TEXT PRIMARY KEY, used REAL NOT NULL, kept_until REAL NOT NULL, size INTEGER NOT NULL, value BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entries_by_use ON entries (used);
CREATE TABLE IF NOT EXISTS invalidations (target TEXT PRIMARY KEY, at REAL NOT NULL, kept_until REAL NOT NULL);
"""
_PUTS_BETWEEN_SWEEPS: Final = 64
_USED_SECONDS: Final = 60.0
"""Least time between two updates that record when an entry was last used, because each update writes to the file."""
_WAITING: Final = 256
"""Cap on the calls that wait for the thread. Further calls fail at once: if so many wait, the disk is too slow."""


class Disk:
    """Implements `Level`. Opens the file at the first call."""

    name = "disk"

    def __init__(self, path: Path, settings: CacheSettings, clock: Clock) -> None:
        self._path = path
        self._limit = settings.disk_bytes
        self._busy_seconds = settings.answer_seconds
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache-disk")
        self._waiting = 0
        self._opened: sqlite3.Connection | None = None
        self._puts = 0

    async def get(self, key: Key) -> bytes | None:
        """See `Level`."""
        return await self._run(lambda file: self._get(file, str(key)))

    async def put(self, key: Key, value: bytes, seconds: float) -> None:
        """See `Level`."""
        await self._run(lambda file: self._put(file, str(key), value, seconds))

    async def invalidate(self, target: str, at: float, seconds: float) -> None:
        """See `Level`."""
        await self._run(lambda file: self._invalidate(file, target, at, at + seconds))

    async def invalidations(self, since: float) -> Mapping[str, float]:
        """See `Level`."""
        return await self._run(
            lambda file: dict(file.execute("SELECT target, at FROM invalidations WHERE at >= ?", (since,)))
        )

    async def close(self) -> None:
        """See `Level`."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._waiting >= _WAITING:
            raise LevelFailed("the disk does not keep up")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work)
        finally:
            self._waiting -= 1

    # -- in the thread -------------------------------------------------------------------------------------------

    def _guarded(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            file = self._file()
            with file:
                return work(file)
        except sqlite3.DatabaseError as error:
            if not isinstance(error, sqlite3.OperationalError):
                self._begin_anew()
            raise LevelFailed(type(error).__name__) from None
        except OSError as error:
            raise LevelFailed(type(error).__name__) from None

    def _file(self) -> sqlite3.Connection:
        if self._opened is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = sqlite3.connect(self._path, timeout=self._busy_seconds)
            try:
                file.executescript(_SCHEMA)
            except BaseException:
                file.close()
                raise
            self._path.chmod(0o600)
            self._opened = file
        return self._opened

    def _begin_anew(self) -> None:
        self._close()
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                self._path.with_name(self._path.name + suffix).unlink()

    def _close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _get(self, file: sqlite3.Connection, key: str) -> bytes | None:
        now = self._clock.time()
        row = file.execute("SELECT value, used FROM entries WHERE key = ? AND kept_until > ?", (key, now)).fetchone()
        if row is None:
            return None
        if now - row[1] > _USED_SECONDS:
            file.execute("UPDATE entries SET used = ? WHERE key = ?", (now, key))
        return bytes(row[0])

    def _put(self, file: sqlite3.Connection, key: str, value: bytes, seconds: float) -> None:
        now = self._clock.time()
        file.execute(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", (key, now, now + seconds, len(value), value)
        )
        self._puts += 1
        if self._puts % _PUTS_BETWEEN_SWEEPS == 1:
            self._sweep(file, now)

    def _sweep(self, file: sqlite3.Connection, now: float) -> None:
        """Delete expired entries, and then evict the least recently used ones until the rest fits."""
        file.execute("DELETE FROM entries WHERE kept_until <= ?", (now,))
        file.execute("DELETE FROM invalidations WHERE kept_until <= ?", (now,))
        file.execute(
            "DELETE FROM entries WHERE key IN (SELECT key FROM (SELECT key, sum(size) OVER (ORDER BY used DESC, key)"
            " AS upto FROM entries) WHERE upto > ?)",
            (self._limit,),
        )

    def _invalidate(self, file: sqlite3.Connection, target: str, at: float, kept_until: float) -> None:
        file.execute("INSERT OR REPLACE INTO invalidations VALUES (?, ?, ?)", (target, at, kept_until))
