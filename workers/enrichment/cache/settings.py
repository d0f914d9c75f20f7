"""Settings of the cache of pages, read from `POSTBACK_CACHE__…`. Each level is on where its own setting says so."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class CacheSettings(BaseSettings):
    """Which levels there are, how large they are, and how long what they hold is good for."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_CACHE__",
        extra="ignore",
        hide_input_in_errors=True,
        frozen=True,
        use_attribute_docstrings=True,
    )

    memory_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """Of pages in each worker's memory, as they stand there: unpacked; 0: that level is off."""
    redis_url: SecretStr | None = None
    """`redis://…`, `rediss://…` or `unix://…`, with its password; absent: that level is off."""
    redis_prefix: str = Field(default="postback:cache:", pattern=r"^[\x21-\x7e]{1,64}$")
    """Before each key, where a Redis is shared with others."""
    disk_path: Path | None = None
    """An SQLite file, which the workers of one machine may share; absent: that level is off."""
    disk_bytes: int = Field(default=1024 * 1024 * 1024, ge=1024 * 1024)
    """Of pages in that file; what was not used for the longest time goes first."""
    entry_bytes: int = Field(default=1024 * 1024, ge=1024, le=64 * 1024 * 1024)
    """A page that is larger when it is written down is kept in no level."""
    fresh_seconds: float = Field(default=3600.0, ge=0)
    """How long a page is good whose server says nothing of it."""
    longest_fresh_seconds: float = Field(default=86400.0, ge=0)
    """The most that a server's `max-age` counts."""
    stale_seconds: float = Field(default=86400.0, ge=0)
    """How long a page is kept beyond that, for when its server is away (RFC 5861, `stale-if-error`)."""
    negative_seconds: float = Field(default=60.0, ge=0)
    """How long it is remembered that a page could not be read."""
    answer_seconds: float = Field(default=0.25, gt=0, le=5)
    """How long Redis and the file are waited for."""
    pause_seconds: float = Field(default=1.0, gt=0, le=60)
    """How long a level that failed is left alone; so late, too, is an invalidation heard of at most."""
