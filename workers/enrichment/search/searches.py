"""What jobs ask of the providers: a search once for all who want it, within its time, and remembered for a while."""

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
"""Of all abstracts and addresses that are remembered."""
_ENTRY_CHARS: Final = 500
"""Counted for what is found beside its text."""

_Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Findings:
    """What a search found, the best first."""

    found: tuple[Found, ...]
    seconds: float = 0.0
    """What it took, without the time in line."""


class Searches:
    """All searches of a worker. They are everybody's: a service is the operator's, and knows nothing of tenants.

    `seconds` is what one search may take, `fresh_seconds` how long it is remembered.
    """

    def __init__(
        self, providers: Mapping[str, SearchProvider], seconds: float, fresh_seconds: float, clock: Clock
    ) -> None:
        self._providers = dict(providers)
        self._seconds = seconds
        self._flights: Flights[_Key, Findings] = Flights()
        self._remembered = _Remembered(fresh_seconds, clock)

    async def find(self, wanted: Search) -> Findings:
        """What the search's provider finds. It may wait in line for as long as the caller does.

        Raises Unreadable, also where no provider has that name, and TimeoutError where it takes longer than it may.
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
    except Exception as error:  # another package's code: its defect must not end the worker, and its text may quote
        kind = type(error).__qualname__
        log.error("A search provider has a defect.", action="search-provider-broken", error=kind)
        raise Unreadable("the search provider has a defect") from None


class _Remembered:
    """What was found lately; what was not asked for the longest time goes first."""

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
