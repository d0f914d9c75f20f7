"""Searches PubMed by NCBI's E-utilities esearch and efetch (https://www.ncbi.nlm.nih.gov/books/NBK25499/)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Final
from xml.etree.ElementTree import Element

from pydantic import Field

from schemas.bounded import BoundedModel
from workers.enrichment.cache.cache import Flights
from workers.enrichment.evidence import Found, Particulars, Unreadable
from workers.enrichment.search.base import MAX_TEXT_CHARS, SearchProvider, SearchQuery, parse, text_of
from workers.enrichment.search.service import Refused, Service, ServiceAnswer, Web, current_allowance
from workers.enrichment.search.words import search_words
from workers.enrichment.settings import PUBMED_PER_SECOND, PUBMED_PER_SECOND_WITH_KEY, SearchSettings

MAX_ARTICLES: Final = 60
"""Cap on the articles of one request. NCBI allows more, but an article with references has about 20 kB to parse."""
SEARCHES_FIRST: Final = 6
"""A request for articles lets this many new searches go first, so that the request can serve several searches."""
_SYNTAX: Final = re.compile(r'["\[\]()*]|\b(?:AND|OR|NOT)\b')
"""Matches the syntax by which a query shows that it is in PubMed's own query language."""


class _Ids(BoundedModel):
    idlist: list[str] = Field(default=[])
    error: str | None = Field(default=None, alias="ERROR")


class _Search(BoundedModel):
    esearchresult: _Ids


@dataclass(slots=True, eq=False)
class _ArticleBatch:
    """The articles of one efetch request, in the order in which searches named them."""

    numbers: dict[str, None] = field(default_factory=dict)
    has_turn: bool = False


class Pubmed:
    """Implements `SearchProvider`. Finds abstracts, named `pmid:…`. Each request has the parameters in `common`.

    All E-utilities share one pace, since NCBI's limit for an address or key covers them together.
    """

    filters = frozenset({"since", "until"})
    id_prefix = "pmid:"

    def __init__(self, service: Service, common: dict[str, str]) -> None:
        self._service = service
        self._common = common
        self._gathering = _ArticleBatch()
        self._turns: Flights[_ArticleBatch, None] = Flights()
        self._answers: Flights[_ArticleBatch, dict[str, Found]] = Flights()

    async def search(self, query: SearchQuery) -> list[Found]:
        """See `SearchProvider`. Articles without an abstract, and retracted articles, are left out.

        PubMed requires every word of a query, and hardly any article has all words of a question. If the query finds
        nothing, a second query asks for articles with any of the question's words, the best match first.
        """
        ids = await self._ids(query.text, query)
        if not ids and not _SYNTAX.search(query.text):
            ids = await self._ids(" OR ".join(search_words(query.text)), query)
        found = await self._articles(ids) if ids else {}
        return [found[number] for number in ids if number in found]

    async def by_id(self, ids: Sequence[str]) -> list[Found]:
        """See `ReadsById`. Retracted articles are gone."""
        numbers = [one.removeprefix(self.id_prefix) for one in ids]
        known = [number for number in numbers if number.isascii() and number.isdecimal()]
        found = await self._articles(known) if known else {}
        return [found[number] for number in known if number in found]

    async def _ids(self, term: str, query: SearchQuery) -> list[str]:
        most = str(query.limit)
        params = {"term": f"({term}) AND hasabstract", "retmax": most, "retmode": "json", "sort": "relevance"}
        if (days := query.days("1500-01-01", "2999-12-31")) is not None:
            first, last = (day.replace("-", "/") for day in days)
            params |= {"datetype": "pdat", "mindate": first, "maxdate": last}
        result = (await self._get("esearch", params)).read(_Search).esearchresult
        if result.error is not None:
            raise Unreadable("the search service reports an internal error")
        return [number for number in result.idlist if number.isdecimal()][: query.limit]

    async def _articles(self, numbers: list[str]) -> dict[str, Found]:
        """Return these articles by number, perhaps together with articles of other searches. Raises Unreadable.

        Waiting searches share one request, since NCBI limits requests, not articles.
        """
        if self._gathering.has_turn or len(self._gathering.numbers) + len(numbers) > MAX_ARTICLES:
            self._gathering = _ArticleBatch()
        batch = self._gathering
        batch.numbers.update(dict.fromkeys(numbers))
        with current_allowance().in_line():
            await self._turns.join(batch, partial(self._turn, batch))
        return await self._answers.join(batch, partial(self._fetched, batch))

    async def _turn(self, batch: _ArticleBatch) -> None:
        await self._service.pace.turn(behind=SEARCHES_FIRST)
        batch.has_turn = True

    async def _fetched(self, batch: _ArticleBatch) -> dict[str, Found]:
        params = {"id": ",".join(batch.numbers), "retmode": "xml", "rettype": "abstract"}
        return _articles_of((await self._get("efetch", params, has_turn=True)).body)

    async def _get(self, utility: str, params: dict[str, str], *, has_turn: bool = False) -> ServiceAnswer:
        try:
            return await self._service.get(self._common | params, path=f"/{utility}.fcgi", has_turn=has_turn)
        except Refused as refused:
            if refused.answer.status == HTTPStatus.BAD_REQUEST and b"API key" in refused.answer.body:
                raise Unreadable("the search service refuses the operator's key") from None
            raise


def make(settings: SearchSettings, web: Web) -> SearchProvider:
    """Return the provider as the settings describe it.

    Its requests name an e-mail address, since NCBI wants to know who asks.
    """
    own = settings.pubmed
    common = {"db": "pubmed", "tool": "postback", "email": web.email}
    common["api_key"] = own.api_key.get_secret_value() if own.api_key is not None else None
    allowed = PUBMED_PER_SECOND if own.api_key is None else PUBMED_PER_SECOND_WITH_KEY
    service = web.service(own.base_url, (own.per_second or allowed) / settings.workers)
    return Pubmed(service, {name: value for name, value in common.items() if value is not None})


# -- the articles in the XML of efetch -------------------------------------------------------------------------------

_RETRACTED: Final = "D016441"
"""The publication type "Retracted Publication" in MeSH."""
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def _articles_of(body: bytes) -> dict[str, Found]:
    """Return the articles by number. Leave out retracted articles and those without an abstract. Raises Unreadable."""
    root = parse(body)
    if root.tag != "PubmedArticleSet":
        raise Unreadable("the search service reports an internal error")
    return dict(article for article in map(_article, root) if article is not None)


def _article(element: Element) -> tuple[str, Found] | None:
    """Return the number and the content of an article or chapter; None if it has no abstract or was retracted."""
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


def _abstract(parts: Iterable[Element]) -> str:
    """Write one paragraph for each part of the abstract; labelled parts begin with their labels."""
    texts = ((part.get("Label"), text_of(part)) for part in parts)
    return "\n\n".join(f"{label}: {text}" if label else text for label, text in texts if text)[:MAX_TEXT_CHARS]


def _published(article: Element) -> str | None:
    """Return the date as exactly as it is known.

    In the XML, months are numbers or names, and some dates are prose ("2000 Spring").
    """
    for place in ("ArticleDate", "Journal/JournalIssue/PubDate", "Book/PubDate"):
        year, month, day = (text_of(article.find(f"{place}/{part}")) for part in ("Year", "Month", "Day"))
        year = year or text_of(article.find(f"{place}/MedlineDate"))[:4]
        if not re.fullmatch(r"\d{4}", year):
            continue
        name = month[:3].lower()
        number = _MONTHS.index(name) + 1 if name in _MONTHS else int(month) if month.isdecimal() else 0
        parts = [year, *([f"{number:02}"] if number else []), *([day.zfill(2)] if number and day.isdecimal() else [])]
        return "-".join(parts)
    return None


def _doi(element: Element, article: Element) -> str | None:
    """Return the article's own DOI. Further down, the XML also has the DOIs of references."""
    places = [
        *article.findall("ELocationID[@EIdType='doi']"),
        *element.findall("PubmedData/ArticleIdList/ArticleId[@IdType='doi']"),
    ]
    return next((text for text in map(text_of, places) if text), None)
