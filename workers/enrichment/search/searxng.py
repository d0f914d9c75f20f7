"""Searches with SearXNG, a metasearch engine that the operator runs (https://docs.searxng.org/dev/search_api.html)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import Field

from schemas.bounded import BoundedModel
from workers.enrichment.evidence import Found, Particulars, Unreadable
from workers.enrichment.reading.particulars import iso_date
from workers.enrichment.search.base import SearchProvider, SearchQuery, distinct, plain_excerpt
from workers.enrichment.search.service import MOST_RESULTS, Refused, Service, Web
from workers.enrichment.settings import SearchSettings


class _SearxngResult(BoundedModel):
    url: str | None = None
    title: str | None = None
    content: str | None = None
    publishedDate: str | None = None  # noqa: N815 - the service's name

    @property
    def found(self) -> Found:
        """The result as a `Found`, with excerpt and date."""
        published = Particulars(iso_date(self.publishedDate))
        return Found(
            self.url or "", title=self.title or None, excerpt=plain_excerpt(self.content), particulars=published
        )


class _SearxngAnswer(BoundedModel):
    results: list[_SearxngResult] = Field(max_length=MOST_RESULTS)
    """The results, sorted by score."""
    unresponsive_engines: list[Any] = Field(default=[])


class Searxng:
    """Implements `SearchProvider`."""

    filters = frozenset({"language"})

    def __init__(self, service: Service) -> None:
        self._service = service

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`. If an answer is empty and names unresponsive engines, the search has failed."""
        try:
            language = {"language": query.language} if query.language is not None else {}
            answer = await self._service.get({"q": query.text, "format": "json", **language}, path="/search")
        except Refused as refused:
            if refused.answer.status == HTTPStatus.FORBIDDEN:
                raise Unreadable("the search service gives no JSON: `json` is missing in its search.formats") from None
            raise
        read = answer.read(_SearxngAnswer)
        found = distinct((result.found for result in read.results), query.limit)
        if not found and read.unresponsive_engines:
            raise Unreadable("none of the search service's engines answered")
        return found


def make(settings: SearchSettings, web: Web) -> SearchProvider | None:
    """Return the provider; None if the settings name no instance."""
    own = settings.searxng
    return Searxng(web.service(own.base_url, own.per_second)) if own.base_url is not None else None
