"""Paces requests to each site as the settings, the site's robots.txt and its `Retry-After` headers demand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
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
    """The monotonic time of the last turn."""
    held_until: float = float("-inf")
    waiting: int = 0
    """The number of requests that wait for a turn."""
    queue: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the request whose turn is next; the lock lets the others in by order of arrival."""

    @property
    def free_at(self) -> float:
        """The monotonic time from which the next request may go to the site."""
        return max(self.asked_at + self.interval, self.held_until)


class Politeness:
    """Paces the requests of all jobs of this worker to each origin."""

    def __init__(self, settings: EnrichmentSettings, clock: Clock) -> None:
        self._interval = settings.host_interval_seconds
        self._longest = settings.budget_seconds
        self._clock = clock
        self._sites: LRUCache[str, _Site] = LRUCache(_HOSTS)

    async def turn(self, origin: str) -> None:
        """Wait until the next request may go to the site.

        A request that is cancelled uses up no turn: the next one takes its place. Raises Unreadable at once if the wait
        would exceed a job's budget, and at its turn if the site has asked for such a pause meanwhile.
        """
        site = self._site(origin)
        self._seconds_left(site, site.waiting)
        site.waiting += 1
        try:
            async with site.queue:
                seconds = self._seconds_left(site, 0)
                while seconds > 0:
                    await asyncio.sleep(seconds)
                    seconds = self._seconds_left(site, 0)  # the site may have asked for a pause meanwhile
                site.asked_at = self._clock.monotonic()
        finally:
            site.waiting -= 1

    def _seconds_left(self, site: _Site, ahead: int) -> float:
        """Return the wait for the turn behind `ahead` other requests. Raises Unreadable if it is too long."""
        now = self._clock.monotonic()
        seconds = max(now, site.free_at) + ahead * site.interval - now
        if seconds > self._longest:
            raise Unreadable("its site asked for a pause", is_outage=True, is_lasting=False)
        return seconds

    def pace(self, origin: str, seconds: float) -> None:
        """Set the pause between requests to the site from its robots.txt; `seconds` is 0 if the file names no delay."""
        self._site(origin).interval = max(self._interval, min(seconds, MAX_HELD_SECONDS))

    def hold(self, origin: str, seconds: float) -> None:
        """Pause requests to the site for `seconds`, as the site's `Retry-After` asks."""
        site = self._site(origin)
        site.held_until = max(site.held_until, self._clock.monotonic() + min(seconds, MAX_HELD_SECONDS))

    def _site(self, origin: str) -> _Site:
        return self._sites.setdefault(origin, _Site(self._interval))
