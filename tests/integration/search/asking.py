"""Asks one search provider one question; a loopback server answers in the provider's format."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.search_services import Reply, answering, configured
from workers.enrichment.evidence import Found, Unreadable
from workers.enrichment.search.base import SearchQuery

LINK = {"url": "https://a.example/1", "title": "One"}
SECTIONS: dict[str, dict[str, Any]] = {"brave": {"api_key": "brave-key"}, "pubmed": {"api_key": "ncbi-key"}}
NAMES = ["searxng", "wikipedia", "pubmed", "arxiv", "brave"]


async def found(name: str, *replies: Reply, limit: int = 5) -> list[Found]:
    async with answering(*replies) as service, configured(name, service.url, **SECTIONS.get(name, {})) as provider:
        return await provider.search(SearchQuery("halvorsen bridge", limit))


async def failure(name: str, *replies: Reply) -> str:
    """The reason of a failed search; asserts that it reveals neither the query, a key nor the service's address."""
    with pytest.raises(Unreadable) as caught:
        await found(name, *replies)
    text = str(caught.value)
    assert not any(secret in text for secret in ("halvorsen", "key=", "brave-key", "ncbi-key", "127.0.0.1"))
    return text
