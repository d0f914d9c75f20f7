"""Searches arXiv (https://info.arxiv.org/help/api/user-manual.html). Answers are Atom feeds; an error is an entry."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from xml.etree.ElementTree import Element

from workers.enrichment.evidence import Found, Particulars, Unreadable
from workers.enrichment.search.base import MAX_TEXT_CHARS, SearchProvider, SearchQuery, parse, text_of
from workers.enrichment.search.service import Refused, Service, Web
from workers.enrichment.search.words import search_words
from workers.enrichment.settings import SearchSettings

_ATOM: Final = "{http://www.w3.org/2005/Atom}"
_ARXIV: Final = "{http://arxiv.org/schemas/atom}"
_OPENSEARCH: Final = "{http://a9.com/-/spec/opensearch/1.1/}"

_ID: Final = r"(?:\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})"
_ABSTRACT_URL: Final = re.compile(rf"https?://arxiv\.org/abs/({_ID})(v\d+)?", re.ASCII)
_AN_ID: Final = re.compile(rf"(?:arxiv:)?({_ID}(?:v\d+)?)", re.ASCII | re.IGNORECASE)
_SYNTAX: Final = re.compile(r"\b(?:ti|au|abs|co|jr|cat|rn|id|all):|\b(?:AND|OR|ANDNOT)\b")
"""Matches the syntax by which a query shows that it is in arXiv's own query language."""
_WITHDRAWN: Final = re.compile(
    r"(?:this (?:paper|article|submission|manuscript) (?:has been|is) )?withdrawn\b", re.IGNORECASE
)


class Arxiv:
    """Implements `SearchProvider`. Finds abstracts, named `arxiv:2305.12345` without the version."""

    filters = frozenset({"since", "until"})
    id_prefix = "arxiv:"

    def __init__(self, service: Service) -> None:
        self._service = service

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`. A query that is an id finds that paper; withdrawn papers are left out."""
        terms = _terms(query.text)
        days = query.days("1991-01-01", "2999-12-31")
        if days is not None and "search_query" in terms:
            first, last = (day.replace("-", "") for day in days)
            terms["search_query"] = f"({terms['search_query']}) AND submittedDate:[{first}0000 TO {last}2359]"
        return await self._found(terms, query.limit)

    async def by_id(self, ids: Sequence[str]) -> list[Found]:
        """See `ReadsById`. Withdrawn papers are gone."""
        known = [found[1] for one in ids if (found := _AN_ID.fullmatch(one)) is not None]
        return await self._found({"id_list": ",".join(known)}, len(known)) if known else []

    async def _found(self, terms: dict[str, str], limit: int) -> list[Found]:
        params = terms | {"start": "0", "max_results": str(limit), "sortBy": "relevance"}
        try:
            answer = await self._service.get(params)
        except Refused as refused:
            _read(refused.answer.body)  # raises the error in the feed; in the past, such answers had status 200
            raise
        return _read(answer.body)[:limit]


def _terms(query: str) -> dict[str, str]:
    """Return the parameters of the request for this query.

    Plain words are joined by OR, because papers with all words of a question are rare.
    """
    if (identifier := _AN_ID.fullmatch(query.strip())) is not None:
        return {"id_list": identifier.group(1)}
    if _SYNTAX.search(query):
        return {"search_query": query}
    words = search_words(query)
    if not words:
        raise Unreadable("there is no word in the query")
    return {"search_query": " OR ".join(f"all:{word}" for word in words)}


def _read(body: bytes) -> list[Found]:
    feed = parse(body)
    if feed.tag != f"{_ATOM}feed":
        raise Unreadable("the search service's answer is not an Atom feed")
    entries = feed.findall(f"{_ATOM}entry")
    if any("/api/errors" in text_of(entry.find(f"{_ATOM}id")) for entry in entries):
        raise Unreadable("the search service does not understand the query")
    total = text_of(feed.find(f"{_OPENSEARCH}totalResults"))
    if not entries and total.isdecimal() and int(total) > 0:
        raise Unreadable("the search service answered with an empty page")
    return [found for entry in entries if (found := _entry(entry)) is not None]


def _entry(entry: Element) -> Found | None:
    """Return one paper; None if the paper lacks an id or an abstract, or was withdrawn."""
    place = _ABSTRACT_URL.fullmatch(text_of(entry.find(f"{_ATOM}id")))
    summary = text_of(entry.find(f"{_ATOM}summary"))[:MAX_TEXT_CHARS]
    if place is None or not summary or _WITHDRAWN.match(summary):
        return None
    name, version = place.group(1), place.group(2) or ""
    return Found(
        url=f"https://arxiv.org/abs/{name}{version}",
        id=f"arxiv:{name}",
        title=text_of(entry.find(f"{_ATOM}title")) or None,
        text=summary,
        particulars=Particulars(
            published=text_of(entry.find(f"{_ATOM}published"))[:10] or None,
            doi=text_of(entry.find(f"{_ARXIV}doi")) or None,
        ),
    )


def make(settings: SearchSettings, web: Web) -> SearchProvider:
    """Return the provider as the settings describe it."""
    return Arxiv(web.service(settings.arxiv.base_url, settings.arxiv.per_second / settings.workers))
