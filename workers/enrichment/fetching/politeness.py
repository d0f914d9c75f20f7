"""Paces requests to each site as the settings, the site's robots.txt and its `Retry-After` headers demand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from cachetools import LRUCache

from telemetry.clock import Clock
from workers.enrichment.evidence import Unreadable
from workers.enrichment.settings import EnrichmentSettings

MAX_HELD_SECONDS: Final = 3600.0
"""Cap on the seconds that a site may ask for by `Retry-After` or `Crawl-delay`."""
_HOSTS: Final = 10_000


@dataclass(slots=True)
class _Site:
    interval: float
    asked_at: float = float("-inf")
    """The monotonic time of the last turn that was granted, which may be in the future."""
    held_until: float = float("-inf")


class Politeness:
    """Paces the requests of all jobs of this worker to each origin."""

    def __init__(self, settings: EnrichmentSettings, clock: Clock) -> None:
        self._interval = settings.host_interval_seconds
        self._longest = settings.budget_seconds
        self._clock = clock
        self._sites: LRUCache[str, _Site] = LRUCache(_HOSTS)

    async def turn(self, origin: str) -> None:
        """Wait until the next request may go to the site.

        Raises Unreadable at once if the wait would exceed a job's budget.
        """
        site, now = self._site(origin), self._clock.monotonic()
        turn = max(now, site.asked_at + site.interval, site.held_until)
        if turn - now > self._longest:
            raise Unreadable("its site asked for a pause", is_outage=True, is_lasting=False)
        site.asked_at = turn
        if turn > now:
            await asyncio.sleep(turn - now)

    def pace(self, origin: str, seconds: float) -> None:
        """Set the pause between requests to the site from its robots.txt; `seconds` is 0 if the file names no delay."""
        self._site(origin).interval = max(self._interval, min(seconds, MAX_HELD_SECONDS))

    def hold(self, origin: str, seconds: float) -> None:
        """Pause requests to the site for `seconds`, as the site's `Retry-After` asks."""
        site = self._site(origin)
        site.held_until = max(site.held_until, self._clock.monotonic() + min(seconds, MAX_HELD_SECONDS))

    def _site(self, origin: str) -> _Site:
        return self._sites.setdefault(origin, _Site(self._interval))
