"""Fetches PubMed's articles by number, with one efetch request for several searches, and parses the XML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from xml.etree.ElementTree import Element

from workers.enrichment.cache.flights import Flights
from workers.enrichment.evidence import Found, Particulars, Unreadable
from workers.enrichment.search.allowance import current_allowance
from workers.enrichment.search.base import MAX_TEXT_CHARS
from workers.enrichment.search.eutils import EUtils
from workers.enrichment.search.markup import parse, text_of

MAX_ARTICLES: Final = 60
"""Cap on articles per request. NCBI allows more, but an article with references has about 20 kB to parse."""
SEARCHES_FIRST: Final = 6
"""The number of new searches that go before a request for articles, so that the request can serve several searches."""

_RETRACTED: Final = "D016441"
"""The publication type "Retracted Publication" in MeSH."""
_MONTH_NAMES: Final = "jan feb mar apr may jun jul aug sep oct nov dec"
_MONTHS: Final = {name: f"{number:02}" for number, name in enumerate(_MONTH_NAMES.split(), start=1)}


@dataclass(slots=True, eq=False)
class _ArticleBatch:
    """The articles of one request, in the order in which searches named them."""

    numbers: dict[str, None] = field(default_factory=dict)


class Articles:
    """Fetches articles by number. Waiting searches share one request, since NCBI limits requests, not articles."""

    def __init__(self, eutils: EUtils) -> None:
        self._eutils = eutils
        self._gathering: _ArticleBatch | None = None
        self._turns: Flights[_ArticleBatch, None] = Flights()
        self._answers: Flights[_ArticleBatch, dict[str, Found]] = Flights()

    async def named(self, numbers: Sequence[str]) -> dict[str, Found]:
        """Return the articles by number; leave out retracted articles and articles without an abstract.

        The result may include articles of other searches. Raises Unreadable.
        """
        batch = self._batch(numbers)
        with current_allowance().in_line():
            await self._turns.join(batch, partial(self._turn, batch))
        return await self._answers.join(batch, partial(self._fetched, batch))

    def _batch(self, numbers: Sequence[str]) -> _ArticleBatch:
        if self._gathering is None or len(self._gathering.numbers) + len(numbers) > MAX_ARTICLES:
            self._gathering = _ArticleBatch()
        self._gathering.numbers.update(dict.fromkeys(numbers))
        return self._gathering

    async def _turn(self, batch: _ArticleBatch) -> None:
        try:
            await self._eutils.turn(behind=SEARCHES_FIRST)
        finally:
            if self._gathering is batch:
                self._gathering = None

    async def _fetched(self, batch: _ArticleBatch) -> dict[str, Found]:
        params = {"id": ",".join(batch.numbers), "retmode": "xml", "rettype": "abstract"}
        root = parse((await self._eutils.get("efetch", params, has_turn=True)).body)
        if root.tag != "PubmedArticleSet":
            raise Unreadable("the search service reports an internal error")
        articles = (_article(element) for element in root)
        return dict(article for article in articles if article is not None)


def _article(element: Element) -> tuple[str, Found] | None:
    """Read an article or a chapter, and its number; None if it has no abstract or was retracted."""
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
    return number, Found(
        url=f"https://pubmed.ncbi.nlm.nih.gov/{number}/",
        id=f"pmid:{number}",
        title=title.rstrip(".") or None,
        text=abstract,
        particulars=Particulars(published=_published(article), doi=_doi(element, article)),
    )


def _abstract(parts: list[Element]) -> str:
    """Write one paragraph for each part of the abstract; labelled parts begin with their labels."""
    texts = ((part.get("Label"), text_of(part)) for part in parts)
    return "\n\n".join(f"{label}: {text}" if label else text for label, text in texts if text)[:MAX_TEXT_CHARS]


def _published(article: Element) -> str | None:
    """Read the date, as exact as known. Months are numbers or English names; some dates are prose ("2000 Spring")."""
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
    """Return the article's own DOI. The XML also has DOIs of references, further down."""
    places = [
        *(place for place in article.findall("ELocationID") if place.get("EIdType") == "doi"),
        *(place for place in element.findall("PubmedData/ArticleIdList/ArticleId") if place.get("IdType") == "doi"),
    ]
    return next((text for text in map(text_of, places) if text), None)
