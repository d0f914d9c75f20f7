"""Reads PubMed's articles from the XML of efetch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from xml.etree.ElementTree import Element

from workers.enrichment.evidence import Found, Particulars, Unreadable
from workers.enrichment.search.base import MAX_TEXT_CHARS
from workers.enrichment.search.markup import parse, text_of

_RETRACTED: Final = "D016441"
"""The publication type "Retracted Publication" in MeSH."""
_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def read_articles(body: bytes) -> dict[str, Found]:
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
