"""Builds the cache with the levels that the settings name."""

from __future__ import annotations

from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.enrichment.cache.cache import Cache
from workers.enrichment.cache.disk import Disk
from workers.enrichment.cache.levels import Level
from workers.enrichment.cache.settings import CacheSettings


def open_cache(settings: CacheSettings, clock: Clock, metrics: Metrics) -> Cache:
    """Build a cache with its levels. Nothing is connected or opened before the first page."""
    return Cache(settings, clock, metrics.cache_lookups, shared_levels(settings, clock))


def shared_levels(settings: CacheSettings, clock: Clock) -> list[Level]:
    """Build the levels outside of this process, nearest first."""
    levels: list[Level] = []
    if settings.redis_url is not None:
        from workers.enrichment.cache.redis_level import RedisLevel

        levels.append(RedisLevel(settings.redis_url.get_secret_value(), settings))
    if settings.disk_path is not None:
        levels.append(Disk(settings.disk_path, settings, clock))
    return levels
