"""Level 3: an SQLite file. The file survives a restart, and the workers of one machine may share it.

Calls of SQLite block, so they run in a thread of their own. An empty file replaces a damaged one, since the workers can
read the lost pages again.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from telemetry.clock import Clock
from workers.enrichment.cache.entry import Key
from workers.enrichment.cache.levels import LevelFailed
from workers.enrichment.cache.settings import CacheSettings

T = TypeVar("T")

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
