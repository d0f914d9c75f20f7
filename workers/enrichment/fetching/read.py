"""Reads one URL: from the cache, or fetched and then parsed by a member of the pool."""

from __future__ import annotations

from typing import Any

from telemetry.clock import Clock
from workers.egress import EgressRefused, Guard
from workers.enrichment.cache.cache import Cache, Reading
from workers.enrichment.cache.entry import CacheEntry, lifetime, scope_of
from workers.enrichment.cache.settings import CacheSettings
from workers.enrichment.evidence import Page, Unreadable
from workers.enrichment.fetching.fetch import Fetcher, Known
from workers.enrichment.fetching.robots import Robots
from workers.enrichment.processes.pool import Pool
from workers.enrichment.turns import Asker


class Reader:
    """Reads pages for jobs. `guard` checks each URL first, even the URL of a cached page."""

    def __init__(
        self,
        fetcher: Fetcher,
        robots: Robots,
        pool: Pool,
        guard: Guard,
        cache: Cache,
        settings: CacheSettings,
        clock: Clock,
    ) -> None:
        self._allowed = (*map(str, guard.policy.allow), *guard.policy.names)
        self._denied = (*map(str, guard.policy.deny), *guard.policy.denied_names)
        self._fetcher = fetcher
        self._robots = robots
        self._pool = pool
        self._guard = guard
        self._cache = cache
        self._settings = settings
        self._clock = clock

    async def read(self, url: str, asker: Asker, patience_seconds: float) -> Reading:
        """Return the page, cached in the tenant's scope or fetched; stale if the server is late. Raises Unreadable."""
        try:
            self._guard.check_url(url)
        except EgressRefused as refused:
            raise Unreadable(f"it may not be fetched: {refused}", is_lasting=False) from None
        scope = scope_of(asker.tenant, self._allowed, self._denied)
        return await self._cache.read(
            url, scope, lambda older: self._anew(url, older, asker), patience_seconds, asker.max_age_seconds
        )

    async def _anew(self, url: str, older: CacheEntry | None, asker: Asker) -> CacheEntry:
        asked_at = self._clock.time()
        known = Known(older.url, older.etag, older.last_modified) if older is not None else None
        page = await self._fetcher.fetch(url, asker, permit=self._robots.check, known=known)
        unchanged = older if page.is_unchanged else None
        answer = unchanged.answer if unchanged is not None else await self.extracted(page, asker)
        life = lifetime(page, self._settings, asked_at)
        if unchanged is not None and not page.cache_control and page.expires is None:
            life = unchanged.life  # a 304 without new freshness keeps the old freshness (RFC 9111, section 4.3.4)
        fresh_until = asked_at + life.fresh if life is not None else asked_at
        kept_until = fresh_until + self._settings.stale_seconds if life is not None else asked_at
        named = unchanged or page
        return CacheEntry(
            asked_at, fresh_until, kept_until, url, named.url, page.etag or named.etag,
            page.last_modified or named.last_modified, answer, life=life,
        )  # fmt: skip

    async def extracted(self, page: Page, asker: Asker) -> dict[str, Any]:
        """Let a member of the pool extract the page's title, text and particulars. Raises Unreadable."""
        task = {"kind": "extract", "media_type": page.media_type, "charset": page.charset, "url": page.url}
        return await self._pool.ask(task, page.body, asker)
