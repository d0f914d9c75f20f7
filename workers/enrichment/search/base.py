"""The interface of a search provider: the seam between a query and the service that finds sources for it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from pydantic import TypeAdapter, ValidationError

from schemas.job import Url
from schemas.operator_error import OperatorError
from workers.enrichment.evidence import Found, Unreadable

MAX_EXCERPT_CHARS: Final = 4000
_TAG: Final = re.compile(r"</?[a-zA-Z][^<>]{0,200}>")
MAX_TEXT_CHARS: Final = 50_000
"""Cap on the characters of one abstract; the longest abstracts have a few thousand."""

FILTERS: Final = ("since", "until", "language")

_URL: Final = TypeAdapter[str](Url)


class SearchMisconfigured(OperatorError):  # noqa: N818 - named after the fault
    """A provider that the settings name is missing, or a provider cannot be set up. The text gives the reason."""


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """One search. Equal queries share one run and its results."""

    text: str
    """The search words."""
    limit: int
    """The largest number of results."""
    tenant: str | None = None
    """The job's tenant; None for a service that all tenants share."""
    parameters: tuple[tuple[str, str], ...] = ()
    """The names and values of the job's parameters; only operators' own sources take parameters."""
    domains: tuple[str, ...] = ()
    """The domains that results must be on.

    A provider may ignore these domains, since `Searches` drops all other results.
    """
    since: str | None = None
    until: str | None = None
    """First and last day of publication, `YYYY-MM-DD`, for a provider that lists `since` and `until` in `filters`."""
    language: str | None = None
    """The language of the results (ISO 639-1), for a provider that lists `language` in `filters`."""

    def days(self, first: str, last: str) -> tuple[str, str] | None:
        """Return the first and last day; `first` or `last` replaces a missing one. None if both days are missing."""
        return (self.since or first, self.until or last) if self.since or self.until else None


class SearchProvider(Protocol):
    """A search service with the operator's settings.

    A provider may have an attribute `filters`: the names in `FILTERS` that the provider obeys.
    """

    async def search(self, query: SearchQuery) -> list[Found]:
        """Return at most `query.limit` results, the best first; an empty list if there are none.

        The provider needs no time limit, because the caller cancels a late search. Raises Unreadable. The error's text
        is for the result's reader and quotes neither the query nor the answer.
        """
        ...


@runtime_checkable
class ReadsById(Protocol):
    """A provider that returns the sources of earlier searches again, by their ids in results."""

    id_prefix: str
    """The beginning of the ids, for example `pmid:`."""

    async def by_id(self, ids: Sequence[str]) -> list[Found]:
        """Return the present texts of these sources, without sources that are gone. Raises Unreadable."""
        ...


def is_link(url: str) -> bool:
    """True if a job may name this link as a source: it is http or https, and has no credentials."""
    try:
        _URL.validate_python(url)
    except ValidationError:
        return False
    return True


def distinct(found: Iterable[Found], limit: int) -> list[Found]:
    """Return the first `limit` results with valid and distinct URLs."""
    first: dict[str, Found] = {}
    for one in found:
        if one.url not in first and is_link(one.url):
            first[one.url] = one
    return list(first.values())[:limit]


def plain_excerpt(*texts: str | None) -> str | None:
    """Return a service's excerpts as one text without markup; None if they have no text."""
    plain = " ".join(html.unescape(_TAG.sub("", text)) for text in dict.fromkeys(texts) if text)
    return " ".join(plain.split())[:MAX_EXCERPT_CHARS] or None


def shortened(query: str, characters: int, words: int | None = None) -> str:
    """Cut the query between two words, so that at most this many `characters` and `words` remain."""
    parts = query.split()[:words]
    while len(parts) > 1 and len(" ".join(parts)) > characters:
        parts.pop()
    return " ".join(parts)[:characters]


def parse(body: bytes) -> Element:
    """Parse XML, and return the root element. Raises Unreadable."""
    try:
        root: Element = fromstring(body)
    except (ParseError, DefusedXmlException, ValueError, LookupError):
        raise Unreadable("the search service's answer is not XML that can be read") from None
    return root


def text_of(element: Element | None) -> str:
    """Return all text in the element on one line, including italics and superscript."""
    return " ".join("".join(element.itertext()).split()) if element is not None else ""
