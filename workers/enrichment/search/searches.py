"""Runs jobs' searches within a time limit. Equal searches share one run, and results are cached for a while."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Final
from urllib.parse import urlsplit

from cachetools import TLRUCache

from schemas.job import Search
from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.enrichment.cache.cache import Flights
from workers.enrichment.evidence import Found, Unreadable
from workers.enrichment.search.base import FILTERS, SearchProvider, SearchQuery
from workers.enrichment.search.inside import InsideSource
from workers.enrichment.search.service import Allowance

log = get_logger()

_KEPT_CHARS: Final = 8_000_000
"""Cap on the characters of all cached searches together."""
_ENTRY_CHARS: Final = 500
"""The overhead, in characters, that is counted for each cached search and for each result in addition to the text."""

UNKNOWN = "no search provider of that name is configured"
_Key = tuple[str, SearchQuery]


@dataclass(frozen=True, slots=True)
class Findings:
    """The results of a search, the best first."""

    found: tuple[Found, ...]
    seconds: float = 0.0
    """The time that the search took, not counting the waits for a turn."""
    ignored: tuple[str, ...] = ()
    """The filters that the search asked for and that the provider does not support."""


@dataclass(frozen=True, slots=True)
class _KeptSearch:
    """Cached results, with the monotonic time of the answer, the lifetime, and the size in characters."""

    found: tuple[Found, ...]
    answered: float
    seconds: float
    chars: int


class Searches:
    """Runs all searches of a worker. Tenants share the results of services, but not those of an operator's own sources.

    `seconds` is the time limit of one search; results are cached for `fresh_seconds`.
    """

    def __init__(
        self, providers: Mapping[str, SearchProvider], seconds: float, fresh_seconds: float, clock: Clock
    ) -> None:
        self._providers = dict(providers)
        self._seconds = seconds
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._flights: Flights[tuple[_Key, float], Findings] = Flights()
        self._kept: TLRUCache[_Key, _KeptSearch] = TLRUCache(
            _KEPT_CHARS,
            ttu=lambda _, kept, now: now + kept.seconds,
            timer=clock.monotonic,
            getsizeof=lambda kept: kept.chars,
        )

    async def find(
        self, wanted: Search, tenant: str, seconds: float | None = None, max_age_seconds: float = inf
    ) -> Findings:
        """Return the provider's results for a job of this tenant.

        The time limit does not include the wait for a turn; only the caller limits that wait. `seconds` replaces the
        time limit; cached results older than `max_age_seconds` are not used. Raises Unreadable, also for an unknown
        provider, and TimeoutError if the search takes longer than the time limit. A source that the tenant may not use
        is treated as unknown, so that a job cannot learn of the source's existence.
        """
        provider = self._providers.get(wanted.provider)
        if provider is None:
            raise Unreadable(UNKNOWN)
        heeded: frozenset[str] = getattr(provider, "filters", frozenset())
        filters = {name: value for name in FILTERS if (value := getattr(wanted, name)) is not None}
        ignored = tuple(name for name in filters if name not in heeded)
        filters = {name: value for name, value in filters.items() if name in heeded}
        query = SearchQuery(wanted.query, wanted.limit, domains=tuple(wanted.domains), **filters)
        if isinstance(provider, InsideSource):
            if not provider.allows(tenant):
                raise Unreadable(UNKNOWN)
            query = replace(query, tenant=tenant, parameters=tuple(sorted(wanted.parameters.items())))
        elif wanted.parameters:
            raise Unreadable("this search provider takes no parameters")
        key = (wanted.provider, query)
        kept = self._kept.get(key)
        if kept is not None and self._clock.monotonic() - kept.answered <= max_age_seconds:
            return Findings(kept.found, ignored=ignored)
        limit = self._seconds if seconds is None else seconds
        findings = await self._flights.join((key, limit), partial(self._asked, provider, key, limit))
        return replace(findings, ignored=ignored)

    async def _asked(self, provider: SearchProvider, key: _Key, seconds: float) -> Findings:
        name, query = key
        allowance = Allowance(seconds)
        async with allowance.limiting():
            answer = await _answer(provider, name, query)
        found = tuple(one for one in answer if not query.domains or _is_on(one.url, query.domains))[: query.limit]
        own = provider.fresh_seconds if isinstance(provider, InsideSource) else None
        fresh_seconds = self._fresh_seconds if own is None else own
        with suppress(ValueError):  # results that alone exceed the cap are not cached
            self._kept[key] = _KeptSearch(found, self._clock.monotonic(), fresh_seconds, _chars(key, found))
        return Findings(found, seconds - allowance.left_seconds)


async def _answer(provider: SearchProvider, name: str, query: SearchQuery) -> list[Found]:
    try:
        return await provider.search(query)
    except Unreadable as reason:
        log.warning("A search failed.", action="search-failed", provider=name, reason=str(reason))
        raise
    except Exception as error:  # another package's defect must not end the worker
        kind = type(error).__qualname__  # the error's text may quote the query
        log.error("A search provider has a defect.", action="search-provider-broken", error=kind)
        raise Unreadable("the search provider has a defect") from None


def _is_on(url: str, domains: tuple[str, ...]) -> bool:
    """True if the URL's host is one of these domains or a subdomain."""
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return False
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


def _chars(key: _Key, found: tuple[Found, ...]) -> int:
    given = len(key[1].text) + sum(len(value) for _, value in key[1].parameters)
    return _ENTRY_CHARS + given + sum(_ENTRY_CHARS + len(one.url) + len(one.text or one.content or "") for one in found)
