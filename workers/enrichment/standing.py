"""Checks whether the quotes of an answer's citations still stand in their sources."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.result import Citation, Result
from workers.enrichment.answering.quotes import contains
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Document, LeftOut


class Standing(StrEnum):
    """The state of a quote in its source, as the source reads now."""

    STANDS = "stands"
    GONE = "gone"
    """The source was read, and does not contain the quoted words in this order."""
    UNREAD = "unread"
    """The source cannot be read now."""
    UNQUOTED = "unquoted"
    """The citation has no quote, because it has no support, the answer is very long, or an older worker wrote it."""


@dataclass(frozen=True, slots=True)
class CheckedCitation:
    """A citation and the state of its quote."""

    citation: Citation
    standing: Standing
    url: str | None = None
    """The address that was read; None for a source without details."""
    reason: str | None = None
    """The reason why the source cannot be read."""


async def checked_citations(result: Result, enricher: Enricher, seconds: float) -> list[CheckedCitation]:
    """Read the sources of a result's quotes once more, within `seconds`, and check each citation."""
    urls = {source.id: source.url for source in result.source_details if source.url is not None}
    quoted = {urls[one.source]: None for one in result.citations if one.quote is not None and one.source in urls}
    found = dict(zip(quoted, await enricher.read(list(quoted), seconds), strict=True))
    return [_checked(one, urls.get(one.source), found) for one in result.citations]


def _checked(citation: Citation, url: str | None, found: dict[str, Document | LeftOut]) -> CheckedCitation:
    if citation.quote is None:
        return CheckedCitation(citation, Standing.UNQUOTED, url)
    if url is None:
        return CheckedCitation(citation, Standing.UNREAD, reason="the result has no address of this source")
    source = found[url]
    if isinstance(source, LeftOut):
        return CheckedCitation(citation, Standing.UNREAD, url, source.reason)
    texts = (source.title or "", source.text, source.rest)
    stands = any(contains(text, citation.quote.exact) for text in texts)
    return CheckedCitation(citation, Standing.STANDS if stands else Standing.GONE, url)
