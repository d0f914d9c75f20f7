"""Settings of the cache of pages, read from `POSTBACK_CACHE__…`. Each level is turned on by its own setting."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from schemas.settings import Constants, RoomSettings


class CacheConstants(Constants):
    """Lifetimes and bounds of cached pages."""

    memory_bytes: int = 64 * 1024 * 1024
    """Maximum size of the unpacked pages in each worker's memory; 0 turns this level off."""
    redis_prefix: str = "postback:cache:"
    """Prefix of each key, so that a Redis can serve other programs, too."""
    entry_bytes: int = 1024 * 1024
    """Maximum size of a page in the encoding for Redis and the file. A larger page is not cached at all."""
    fresh_seconds: float = 3600.0
    """Time for which a page is fresh if its server names no time."""
    longest_fresh_seconds: float = 86400.0
    """Cap on the time for which a page is fresh if its server names a time, for example by `max-age`."""
    stale_seconds: float = 86400.0
    """Time for which a stale page is kept, to replace a page that cannot be read (RFC 5861, `stale-if-error`)."""
    negative_seconds: float = 60.0
    """Time for which a failure to read a page is cached."""
    answer_seconds: float = 0.25
    """Timeout of each call to Redis and to the file."""
    pause_seconds: float = 1.0
    """Pause after a level's failure. This is also the longest delay until a worker learns of an invalidation."""


class CacheSettings(CacheConstants, RoomSettings, env_prefix="POSTBACK_CACHE__"):
    """The cache's levels, the sizes of the levels, and the lifetimes of cached pages."""

    redis_url: SecretStr | None = None
    """URL of a Redis with its password (`redis://…`, `rediss://…` or `unix://…`). Without a URL, this level is off."""
    disk_path: Path | None = None
    """Path of an SQLite file that the workers of one machine may share. Without a path, this level is off."""
    disk_bytes: int = Field(default=1024 * 1024 * 1024, ge=1024 * 1024)
    """Maximum size of the pages in the SQLite file; the least recently used page is evicted first."""
