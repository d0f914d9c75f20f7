"""Fetches robots.txt files (RFC 9309) and caches them per origin.

A member of the pool evaluates the rules, see `processes.member`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

from cachetools import TLRUCache
from yarl import URL

from telemetry.clock import Clock
from workers.enrichment.evidence import Unreadable
from workers.enrichment.fetching.fetch import MAX_HELD_SECONDS, BadStatus, Fetcher, Politeness
from workers.enrichment.processes.pool import Pool
from workers.enrichment.settings import EnrichmentSettings
from workers.enrichment.turns import Asker

MAX_ROBOTS_BYTES = 512 * 1024
"""A longer robots.txt is cut to this size. RFC 9309, section 2.5, requires at least 500 KiB to be read."""

_FAILURE_SECONDS = 60.0
"""Time for which a failure to fetch a robots.txt is cached, unless the server's `Retry-After` asks for another."""
_LEAST_FAILURE_SECONDS = 1.0
"""Least time for which such a failure is cached, so that `Retry-After: 0` does not make each page ask again."""
KEPT_BYTES = 32 * 1024 * 1024
"""Cap on the bytes of all cached files, since a stranger may have a thousand sites with files of MAX_ROBOTS_BYTES."""
_SITE_BYTES = 4096
"""Bytes that are counted for each site in addition to its file, so that a cache of 32 MiB has at most 8,000 sites."""

_EMPTY = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT})


@dataclass(frozen=True, slots=True)
class _Rules:
    """A robots.txt, or the reason why it is unknown. An unknown file forbids every page (RFC 9309, 2.3.1.4)."""

    body: bytes
    unknown: str | None
    seconds: float
    """Time for which the rules are cached."""


class Robots:
    """Checks URLs against their sites' robots.txt."""

    def __init__(
        self, settings: EnrichmentSettings, fetcher: Fetcher, pool: Pool, politeness: Politeness, clock: Clock
    ) -> None:
        self._politeness = politeness
        self._settings = settings
        self._fetcher = fetcher
        self._pool = pool
        self._known: TLRUCache[str, _Rules] = TLRUCache(
            KEPT_BYTES,
            ttu=lambda _, rules, now: now + rules.seconds,
            timer=clock.monotonic,
            getsizeof=lambda rules: len(rules.body) + _SITE_BYTES,
        )
        self._asking: dict[str, asyncio.Task[_Rules]] = {}

    async def check(self, url: str, asker: Asker) -> None:
        """Check the site's robots.txt. Raises Unreadable if the site forbids this URL."""
        if not self._settings.robots:
            return
        plain = URL(url)  # yarl removes dot segments, which could evade a rule
        origin = str(plain.origin())
        rules = await self._rules(origin, asker)
        if rules.unknown is not None:
            why = f"its site's robots.txt could not be read: {rules.unknown}"
            raise Unreadable(why, is_outage=True, is_lasting=False)
        answer = {"allowed": True, "delay": 0.0}
        if rules.body.strip():
            task = {"kind": "robots", "url": str(plain), "user_agent": self._settings.robots_agent}
            answer = await self._pool.ask(task, rules.body, asker)
        self._politeness.pace(origin, answer["delay"])
        if not answer["allowed"]:
            raise Unreadable("its site's robots.txt forbids reading it", is_lasting=False)

    async def close(self) -> None:
        """Cancel the running fetches."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _rules(self, origin: str, asker: Asker) -> _Rules:
        """Return an origin's rules, fetched once for all waiting jobs. A job's cancellation does not stop the fetch."""
        known = self._known.get(origin)
        if known is not None:
            return known
        task = self._asking.get(origin)
        if task is None:
            task = asyncio.create_task(self._fetch(origin, asker), name="robots")
            self._asking[origin] = task
            task.add_done_callback(lambda _: self._asking.pop(origin, None))
        return await asyncio.shield(task)

    async def _fetch(self, origin: str, asker: Asker) -> _Rules:
        body, unknown, failure_seconds = b"", None, _FAILURE_SECONDS
        try:
            async with asyncio.timeout(self._settings.budget_seconds):
                url = f"{origin}/robots.txt"
                body = (await self._fetcher.fetch(url, asker, cut_at_bytes=MAX_ROBOTS_BYTES)).body
        except BadStatus as bad:
            # An absent (4xx) or empty (204, 205) file allows every page; any other status allows none. A server that is
            # too busy (429) does not say that the file is absent, so a 429 counts as an outage, like 5xx.
            is_absent = bad.status >= HTTPStatus.BAD_REQUEST and not bad.is_outage
            unknown = None if is_absent or bad.status in _EMPTY else str(bad)
            if bad.retry_after_seconds is not None:
                failure_seconds = min(max(bad.retry_after_seconds, _LEAST_FAILURE_SECONDS), MAX_HELD_SECONDS)
        except Unreadable as reason:
            unknown = str(reason)
        except TimeoutError:
            unknown = "it was late"
        lasting = self._settings.robots_seconds if unknown is None else failure_seconds
        rules = _Rules(body, unknown, lasting)
        self._known[origin] = rules
        return rules
