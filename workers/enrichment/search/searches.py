"""Runs jobs' searches within a time limit. Equal searches share one run, and results are cached for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from schemas.job import Search
from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.enrichment.cache.flights import Flights
from workers.enrichment.evidence import Found, Unreadable
from workers.enrichment.search.allowance import Allowance
from workers.enrichment.search.base import SearchProvider

log = get_logger()

_KEPT_CHARS: Final = 8_000_000
"""Cap on the characters of all cached searches."""
_ENTRY_CHARS: Final = 500
"""Characters that count for each cached search and for each result, in addition to the text."""

_Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Findings:
    """The results of a search, the best first."""

    found: tuple[Found, ...]
    seconds: float = 0.0
    """Time that the search took, without waits for a turn."""


class Searches:
    """All searches of a worker. Tenants share the results: a service belongs to the operator, and knows no tenants.

    `seconds` is the time limit of one search; `fresh_seconds` is the time for which its results are cached.
    """

    def __init__(
        self, providers: Mapping[str, SearchProvider], seconds: float, fresh_seconds: float, clock: Clock
    ) -> None:
        self._providers = dict(providers)
        self._seconds = seconds
        self._flights: Flights[_Key, Findings] = Flights()
        self._remembered = _Remembered(fresh_seconds, clock)

    async def find(self, wanted: Search) -> Findings:
        """Return the provider's results. Only the caller limits the wait for a turn.

        Raises Unreadable, also for an unknown provider, and TimeoutError beyond the search's time limit.
        """
        provider = self._providers.get(wanted.provider)
        if provider is None:
            raise Unreadable("no search provider of that name is configured")
        key = (wanted.provider, wanted.query, wanted.limit)
        known = self._remembered.get(key)
        if known is not None:
            return Findings(known)
        return await self._flights.join(key, partial(self._asked, provider, key))

    async def _asked(self, provider: SearchProvider, key: _Key) -> Findings:
        name, query, limit = key
        allowance = Allowance(self._seconds)
        async with allowance:
            found = tuple((await _answer(provider, name, query, limit))[:limit])
        self._remembered.put(key, found)
        return Findings(found, self._seconds - allowance.left_seconds)


async def _answer(provider: SearchProvider, name: str, query: str, limit: int) -> list[Found]:
    try:
        return await provider.search(query, limit)
    except Unreadable as reason:
        log.warning("A search failed.", action="search-failed", provider=name, reason=str(reason))
        raise
    except Exception as error:  # another package's defect must not end the worker, and its text must not reach the log
        kind = type(error).__qualname__
        log.error("A search provider has a defect.", action="search-provider-broken", error=kind)
        raise Unreadable("the search provider has a defect") from None


class _Remembered:
    """An LRU cache of search results, each with a lifetime."""

    def __init__(self, fresh_seconds: float, clock: Clock) -> None:
        self._fresh_seconds = fresh_seconds
        self._clock = clock
        self._entries: OrderedDict[_Key, tuple[float, tuple[Found, ...]]] = OrderedDict()
        self._chars = 0

    def get(self, key: _Key) -> tuple[Found, ...] | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        until, found = entry
        if until <= self._clock.monotonic():
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return found

    def put(self, key: _Key, found: tuple[Found, ...]) -> None:
        if key in self._entries:
            self._drop(key)
        self._entries[key] = (self._clock.monotonic() + self._fresh_seconds, found)
        self._chars += _chars(key, found)
        while self._chars > _KEPT_CHARS:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: _Key) -> None:
        _, found = self._entries.pop(key)
        self._chars -= _chars(key, found)


def _chars(key: _Key, found: tuple[Found, ...]) -> int:
    return _ENTRY_CHARS + len(key[1]) + sum(_ENTRY_CHARS + len(one.url) + len(one.text or "") for one in found)
