"""Checks whether the quotes of an answer's citations still stand in their sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from schemas.result import Citation, Result
from schemas.sources import SourceDocument
from workers.enrichment.answering.quotes import contains
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Document, LeftOut

NO_ADDRESS: Final = "the result has no address of this source; give its file with --document ID=FILE"


class Standing(StrEnum):
    """The state of a quote in its source, according to the source's current text."""

    STANDS = "stands"
    GONE = "gone"
    """The source was read, and does not contain the quoted words in this order."""
    UNREAD = "unread"
    """The source cannot be read now."""
    UNQUOTED = "unquoted"
    """The citation has no quote: it has no support, or the answer is very long, or an older worker wrote the answer."""


@dataclass(frozen=True, slots=True)
class CheckedCitation:
    """A citation and the state of its quote."""

    citation: Citation
    standing: Standing
    url: str | None = None
    """The address that was read; None for a source without details."""
    reason: str | None = None
    """The reason why the source cannot be read; None for any other standing."""


async def checked_citations(
    result: Result, enricher: Enricher, seconds: float, documents: Mapping[str, SourceDocument] = MappingProxyType({})
) -> list[CheckedCitation]:
    """Read the sources of a result's quotes once more, within `seconds`, and check each citation.

    `documents` maps ids of sources to documents, which are read instead of these sources.
    """
    urls = {source.id: source.url for source in result.source_details if source.url is not None}
    sources: dict[str, str | SourceDocument] = {**urls, **documents}
    quoted = dict.fromkeys(one.source for one in result.citations if one.quote is not None and one.source in sources)
    found = dict(zip(quoted, await enricher.read([sources[one] for one in quoted], seconds), strict=True))
    return [_checked(one, urls.get(one.source), found.get(one.source)) for one in result.citations]


def _checked(citation: Citation, url: str | None, source: Document | LeftOut | None) -> CheckedCitation:
    if citation.quote is None:
        return CheckedCitation(citation, Standing.UNQUOTED, url)
    if source is None:
        return CheckedCitation(citation, Standing.UNREAD, reason=NO_ADDRESS)
    if isinstance(source, LeftOut):
        return CheckedCitation(citation, Standing.UNREAD, url, source.reason)
    texts = (source.title or "", source.text, source.rest)
    stands = any(contains(text, citation.quote.exact) for text in texts)
    return CheckedCitation(citation, Standing.STANDS if stands else Standing.GONE, url)
