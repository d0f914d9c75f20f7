"""Search providers: they turn a query into URLs, which are then read as any other source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from schemas.job import Search
from workers.enrichment.evidence import Unreadable


class SearchProvider(Protocol):
    """One search service, as the operator has configured it."""

    async def search(self, query: str, limit: int) -> list[str]:
        """At most `limit` URLs, the best first. Runs until cancelled. Raises Unreadable."""
        ...


async def search(providers: Mapping[str, SearchProvider], wanted: Search) -> list[str]:
    """The URLs that the job's provider finds. Raises Unreadable, also where no provider has that name."""
    provider = providers.get(wanted.provider)
    if provider is None:
        raise Unreadable("no search provider of that name is configured")
    return (await provider.search(wanted.query, wanted.limit))[: wanted.limit]
