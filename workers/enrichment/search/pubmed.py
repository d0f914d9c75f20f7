"""PubMed by NCBI's E-utilities (https://www.ncbi.nlm.nih.gov/books/NBK25499/): ids by esearch, articles by efetch."""

from __future__ import annotations

import re
from typing import Final

from pydantic import Field

from schemas.bounded import BoundedModel
from workers.enrichment.evidence import Found, Unreadable
from workers.enrichment.search.articles import Articles
from workers.enrichment.search.base import SearchProvider, SearchQuery
from workers.enrichment.search.eutils import EUtils
from workers.enrichment.search.service import Web
from workers.enrichment.search.settings import PUBMED_PER_SECOND, PUBMED_PER_SECOND_WITH_KEY, SearchSettings
from workers.enrichment.search.words import search_words

_SYNTAX: Final = re.compile(r'["\[\]()*]|\b(?:AND|OR|NOT)\b')
"""Marks of a query in PubMed's own query language."""


class _Ids(BoundedModel):
    idlist: list[str] = Field(default=[])
    error: str | None = Field(default=None, alias="ERROR")


class _Search(BoundedModel):
    esearchresult: _Ids


class Pubmed:
    """Implements `SearchProvider`. Finds abstracts, named `pmid:…`."""

    filters = frozenset({"since", "until"})

    def __init__(self, eutils: EUtils) -> None:
        self._eutils = eutils
        self._articles = Articles(eutils)

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`. Articles without an abstract, and retracted articles, are left out.

        PubMed requires every word of a query, and hardly any article has all words of a question. If the query finds
        nothing, a second query asks for articles with any of the question's words, the best match first.
        """
        ids = await self._ids(query.text, query)
        if not ids and not _SYNTAX.search(query.text):
            ids = await self._ids(" OR ".join(search_words(query.text)), query)
        found = await self._articles.named(ids) if ids else {}
        return [found[number] for number in ids if number in found]

    async def _ids(self, term: str, query: SearchQuery) -> list[str]:
        most = str(query.limit)
        params = {"term": f"({term}) AND hasabstract", "retmax": most, "retmode": "json", "sort": "relevance"}
        if (days := query.days("1500-01-01", "2999-12-31")) is not None:
            first, last = (day.replace("-", "/") for day in days)
            params |= {"datetype": "pdat", "mindate": first, "maxdate": last}
        result = (await self._eutils.get("esearch", params)).read(_Search).esearchresult
        if result.error is not None:
            raise Unreadable("the search service reports an internal error")
        return [number for number in result.idlist if number.isdecimal()][: query.limit]


def make(settings: SearchSettings, web: Web) -> SearchProvider:
    """Return the provider as the settings describe it."""
    own = settings.pubmed
    allowed = PUBMED_PER_SECOND if own.api_key is None else PUBMED_PER_SECOND_WITH_KEY
    return Pubmed(EUtils(web.service(own.base_url, own.per_second or allowed), own, own.email or web.email))
