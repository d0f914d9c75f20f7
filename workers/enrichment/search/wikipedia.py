"""Searches Wikipedia or another MediaWiki (https://www.mediawiki.org/wiki/API:Search, and Manual:Maxlag_parameter)."""

from __future__ import annotations

from pydantic import Field

from schemas.bounded import BoundedModel
from workers.enrichment.evidence import Found, Unreadable
from workers.enrichment.search.base import SearchProvider, SearchQuery, links, shortened
from workers.enrichment.search.service import MOST_RESULTS, Service, ServiceAnswer, Web, asked_to_wait, retry_after
from workers.enrichment.settings import SearchSettings

MAX_QUERY_CHARS = 300
"""Cap on a query's characters, since CirrusSearch refuses longer queries."""
_SPARE = 3
"""This many results are requested beyond the limit, since disambiguation pages are left out."""
_MAX_RESULTS = 50
_BUSY = frozenset({"maxlag", "readonly", "ratelimited"})

_PARAMETERS = {
    "action": "query",
    "format": "json",
    "formatversion": "2",
    "maxlag": "5",
    "redirects": "1",
    "generator": "search",
    "gsrnamespace": "0",
    "prop": "info|pageprops",
    "inprop": "url",
    "ppprop": "disambiguation",
}


class _Page(BoundedModel):
    title: str
    index: int = _MAX_RESULTS
    """The page's place among the results, since `pages` is sorted by page id."""
    canonicalurl: str | None = None
    fullurl: str | None = None
    pageprops: dict[str, str] = Field(default={})


class _Query(BoundedModel):
    pages: list[_Page] = Field(default=[], max_length=MOST_RESULTS)


class _WikipediaError(BoundedModel):
    code: str


class _WikipediaAnswer(BoundedModel):
    query: _Query = _Query()
    """The pages; absent if the wiki found nothing."""
    error: _WikipediaError | None = None
    """The error, which the wiki sends with status 200."""


class Wikipedia:
    """Implements `SearchProvider`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`. Disambiguation pages are left out."""
        most = min(query.limit + _SPARE, _MAX_RESULTS)
        wanted = {"gsrsearch": shortened(query.text, MAX_QUERY_CHARS), "gsrlimit": str(most)}
        answer = (await self._service.get(_PARAMETERS | wanted, overloaded=_overloaded)).read(_WikipediaAnswer)
        if answer.error is not None:
            raise Unreadable("the search service refuses the query")
        pages = sorted(answer.query.pages, key=lambda page: page.index)
        articles = [page for page in pages if "disambiguation" not in page.pageprops]
        return links([(page.canonicalurl or page.fullurl, page.title) for page in articles], query.limit)


def _overloaded(answer: ServiceAnswer) -> float | None:
    """Return the seconds to wait; None if the wiki is not overloaded. A lagging wiki sends an error with status 200."""
    code = answer.headers.get("MediaWiki-API-Error")
    return retry_after(answer) if code in _BUSY else asked_to_wait(answer)


def make(settings: SearchSettings, web: Web) -> SearchProvider:
    """Return the provider as the settings describe it."""
    return Wikipedia(web.service(settings.wikipedia.base_url, settings.wikipedia.per_second))
