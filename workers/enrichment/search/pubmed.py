"""PubMed by NCBI's E-utilities (https://www.ncbi.nlm.nih.gov/books/NBK25499/): ids by esearch, abstracts by efetch."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Final
from xml.etree.ElementTree import Element

from pydantic import BaseModel, Field

from workers.enrichment.evidence import Found, Particulars, Unreadable
from workers.enrichment.search.base import MAX_TEXT_CHARS, SearchProvider
from workers.enrichment.search.markup import parse, text_of
from workers.enrichment.search.service import Answer, Refused, Service, Web
from workers.enrichment.search.settings import (
    PUBMED_PER_SECOND,
    PUBMED_PER_SECOND_WITH_KEY,
    PubmedSettings,
    SearchSettings,
)

TOOL: Final = "postback"
MAX_QUERY_WORDS: Final = 20

_RETRACTED: Final = "D016441"
"""The publication type "Retracted Publication" in MeSH."""
_SYNTAX: Final = re.compile(r'["\[\]()*]|\b(?:AND|OR|NOT)\b')
"""What shows that a query is written in PubMed's own language."""
_WORD: Final = re.compile(r"\w+(?:-\w+)*")
_MONTH_NAMES: Final = "jan feb mar apr may jun jul aug sep oct nov dec"
_MONTHS: Final = {name: f"{number:02}" for number, name in enumerate(_MONTH_NAMES.split(), start=1)}


class _Ids(BaseModel):
    idlist: list[str] = []
    error: str | None = Field(default=None, alias="ERROR")


class _Search(BaseModel):
    esearchresult: _Ids


class Pubmed:
    """Implements `SearchProvider`. What is found are abstracts, named `pmid:…`."""

    def __init__(self, service: Service, settings: PubmedSettings) -> None:
        self._service = service
        self._common = {"db": "pubmed", "tool": TOOL}
        if settings.email is not None:
            self._common["email"] = settings.email
        if settings.api_key is not None:
            self._common["api_key"] = settings.api_key.get_secret_value()

    async def search(self, query: str, limit: int) -> list[Found]:
        """See `SearchProvider`. Articles without an abstract, and retracted ones, are left out.

        PubMed wants every word of a query in an article, and hardly any has all of a question's: where that finds
        nothing, any of the words will do, the best match first.
        """
        ids = await self._ids(query, limit)
        if not ids and not _SYNTAX.search(query):
            ids = await self._ids(" OR ".join(_WORD.findall(query)[:MAX_QUERY_WORDS]), limit)
        return await self._articles(ids) if ids else []

    async def _ids(self, term: str, limit: int) -> list[str]:
        params = {"term": f"({term}) AND hasabstract", "retmax": str(limit), "retmode": "json", "sort": "relevance"}
        result = (await self._get("/esearch.fcgi", params)).read(_Search).esearchresult
        if result.error is not None:
            raise Unreadable("the search service reports a fault of its own")
        return [number for number in result.idlist if number.isdecimal()][:limit]

    async def _articles(self, ids: list[str]) -> list[Found]:
        answer = await self._get("/efetch.fcgi", {"id": ",".join(ids), "retmode": "xml", "rettype": "abstract"})
        root = parse(answer.body)
        if root.tag != "PubmedArticleSet":
            raise Unreadable("the search service reports a fault of its own")
        found = [_article(element) for element in root]
        named = {article.id: article for article in found if article is not None}
        return [named[name] for name in (f"pmid:{number}" for number in ids) if name in named]

    async def _get(self, path: str, params: dict[str, str]) -> Answer:
        try:
            return await self._service.get(self._common | params, path=path)
        except Refused as refused:
            if refused.answer.status == HTTPStatus.BAD_REQUEST and b"API key" in refused.answer.body:
                raise Unreadable("the search service refuses the operator's key") from None
            raise


def _article(element: Element) -> Found | None:
    """An article or a chapter; None for one without an abstract, and for one that was retracted."""
    record = element.find("BookDocument" if element.tag == "PubmedBookArticle" else "MedlineCitation")
    if record is None:
        return None
    article = record if record.tag == "BookDocument" else record.find("Article")
    number = text_of(record.find("PMID"))
    if article is None or not number.isdecimal():
        return None
    abstract = _abstract(article.findall("Abstract/AbstractText"))
    if not abstract or any(kind.get("UI") == _RETRACTED for kind in article.iter("PublicationType")):
        return None
    title = text_of(article.find("ArticleTitle")) or text_of(article.find("Book/BookTitle"))
    return Found(
        url=f"https://pubmed.ncbi.nlm.nih.gov/{number}/",
        id=f"pmid:{number}",
        title=title.rstrip(".") or None,
        text=abstract,
        particulars=Particulars(published=_published(article), doi=_doi(element, article)),
    )


def _abstract(parts: list[Element]) -> str:
    """One paragraph for each part; a structured abstract's begin with their labels."""
    texts = ((part.get("Label"), text_of(part)) for part in parts)
    return "\n\n".join(f"{label}: {text}" if label else text for label, text in texts if text)[:MAX_TEXT_CHARS]


def _published(article: Element) -> str | None:
    """As exact as it is known; months are numbers or English names, and some dates are prose ("2000 Spring")."""
    for place in ("ArticleDate", "Journal/JournalIssue/PubDate", "Book/PubDate"):
        date = article.find(place)
        year = text_of(date.find("Year")) or text_of(date.find("MedlineDate"))[:4] if date is not None else ""
        if date is None or not re.fullmatch(r"\d{4}", year):
            continue
        month = text_of(date.find("Month"))
        month = _MONTHS.get(month[:3].lower(), month.zfill(2) if month.isdecimal() else "")
        day = text_of(date.find("Day"))
        return "-".join([year, *([month] if month else []), *([day.zfill(2)] if month and day.isdecimal() else [])])
    return None


def _doi(element: Element, article: Element) -> str | None:
    """The article's own: its references have DOIs too, further down."""
    places = [
        *(place for place in article.findall("ELocationID") if place.get("EIdType") == "doi"),
        *(place for place in element.findall("PubmedData/ArticleIdList/ArticleId") if place.get("IdType") == "doi"),
    ]
    return next((text for text in map(text_of, places) if text), None)


def make(settings: SearchSettings, web: Web) -> SearchProvider:
    """The provider as the settings describe it."""
    own = settings.pubmed
    allowed = PUBMED_PER_SECOND if own.api_key is None else PUBMED_PER_SECOND_WITH_KEY
    return Pubmed(web.service(own.base_url, own.per_second or allowed), own)
