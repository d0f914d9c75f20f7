"""When a site may be asked for its next page: as often as its robots.txt and its answers let us, and the settings."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from telemetry.clock import Clock
from workers.enrichment.evidence import Unreadable
from workers.enrichment.settings import EnrichmentSettings

MAX_HELD_SECONDS: Final = 3600.0
"""The most that a site's `Retry-After` or `Crawl-delay` counts."""
_HOSTS: Final = 10_000


@dataclass(slots=True)
class _Site:
    interval: float
    asked_at: float = float("-inf")
    """When it is our turn for the last page that was promised one."""
    held_until: float = float("-inf")


class Politeness:
    """The pace of each origin, whichever jobs ask it; in this worker."""

    def __init__(self, settings: EnrichmentSettings, clock: Clock) -> None:
        self._interval = settings.host_interval_seconds
        self._longest = settings.budget_seconds
        self._clock = clock
        self._sites: OrderedDict[str, _Site] = OrderedDict()

    async def turn(self, origin: str) -> None:
        """Wait until it is our turn. Raises Unreadable at once where that takes longer than any job has."""
        site, now = self._site(origin), self._clock.monotonic()
        turn = max(now, site.asked_at + site.interval, site.held_until)
        if turn - now > self._longest:
            raise Unreadable("its site asks to be left alone for a while", is_outage=True, is_lasting=False)
        site.asked_at = turn
        if turn > now:
            await asyncio.sleep(turn - now)

    def pace(self, origin: str, seconds: float) -> None:
        """Leave so much time between two pages of the site, as its robots.txt says now; 0 where it says nothing."""
        self._site(origin).interval = max(self._interval, min(seconds, MAX_HELD_SECONDS))

    def hold(self, origin: str, seconds: float) -> None:
        """Ask the site for nothing for so long, as its answer says."""
        site = self._site(origin)
        site.held_until = max(site.held_until, self._clock.monotonic() + min(seconds, MAX_HELD_SECONDS))

    def _site(self, origin: str) -> _Site:
        site = self._sites.setdefault(origin, _Site(self._interval))
        self._sites.move_to_end(origin)
        while len(self._sites) > _HOSTS:
            self._sites.popitem(last=False)
        return site
