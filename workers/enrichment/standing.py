"""Reads the sources of a result again, and checks whether its citations' quotes still stand there."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from schemas.result import Citation, Result
from schemas.sources import SourceDocument
from telemetry.clock import Deadline
from workers.enrichment.answering.quotes import contains
from workers.enrichment.answering.sentences import sentences
from workers.enrichment.enrich import LATE, Enricher
from workers.enrichment.evidence import Document, Found, LeftOut, Unreadable, Wanted
from workers.enrichment.search.base import ReadsById, SearchProvider

NO_ADDRESS: Final = "the result has no address of this source; give its file with --document ID=FILE"
NO_LONGER_FOUND: Final = "its service does not return it any more; it may have been retracted or withdrawn"


class Standing(StrEnum):
    """The state of a quote in its source, according to the source's current text."""

    STANDS = "stands"
    GONE = "gone"
    """The source was read, and does not contain the quoted words in this order."""
    UNREAD = "unread"
    """The source cannot be read now."""
    UNQUOTED = "unquoted"
    """The citation has no quote, because it has no support."""


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
    result: Result,
    enricher: Enricher,
    deadline: Deadline,
    providers: Iterable[SearchProvider] = (),
    documents: Mapping[str, SourceDocument] = MappingProxyType({}),
) -> list[CheckedCitation]:
    """Read the sources of a result's quotes once more, until `deadline`, and check each citation.

    `providers` return their own sources by id, for example abstracts, whose pages no worker reads. `documents` maps ids
    of sources to documents, which are read instead of these sources.
    """
    urls = {source.id: source.url for source in result.source_details if source.url is not None}
    quoted = dict.fromkeys(one.source for one in result.citations if one.quote is not None)
    found = await _present(quoted, urls, enricher, deadline, providers, documents)
    return [_checked(one, urls.get(one.source), found.get(one.source)) for one in result.citations]


def source_numbers(result: Result) -> dict[int, str]:
    """Return the ids of the answer's sources by the numbers by which the answer cites them.

    A result has no numbers, but its citations stand in the order of the marks. Sources that no mark names follow.
    """
    marks: dict[tuple[int, int], list[str]] = {}
    for one in result.citations:
        marks.setdefault((one.start, one.end), []).append(one.source)
    found: dict[int, str] = {}
    for (start, end), names in marks.items():
        numbers = [number for each in sentences((result.text or "")[start:end]) for number in each.numbers]
        if len(numbers) == len(names):
            found |= {number: name for number, name in zip(numbers, names, strict=True) if name != f"[{number}]"}
    left = (name for name in result.sources if name not in found.values())
    free = (number for number in itertools.count(1) if number not in found)
    return found | dict(zip(free, left, strict=False))


async def present_sources(
    result: Result,
    names: Iterable[str],
    enricher: Enricher,
    deadline: Deadline,
    providers: Iterable[SearchProvider] = (),
    documents: Mapping[str, SourceDocument] = MappingProxyType({}),
) -> dict[str, Document | str]:
    """Read these sources of a result once more; return each source's text, or the reason why it cannot be read."""
    urls = {source.id: source.url for source in result.source_details if source.url is not None}
    wanted = dict.fromkeys(names)
    urls = {one: one for one in wanted if one.startswith(("https://", "http://"))} | urls
    found = await _present(wanted, urls, enricher, deadline, providers, documents)
    return {one: _text_or_reason(found.get(one)) for one in wanted}


def _text_or_reason(source: Document | LeftOut | None) -> Document | str:
    if source is None:
        return NO_ADDRESS
    return source.reason if isinstance(source, LeftOut) else source


async def _present(
    wanted: Collection[str],
    urls: Mapping[str, str],
    enricher: Enricher,
    deadline: Deadline,
    providers: Iterable[SearchProvider],
    documents: Mapping[str, SourceDocument],
) -> dict[str, Document | LeftOut]:
    """Read these sources. A source without an address is left out."""
    # A document of the job may have any id, but no address.
    asked = {
        provider: [one for one in wanted if one.startswith(provider.id_prefix) and one in urls and one not in documents]
        for provider in providers
        if isinstance(provider, ReadsById)
    }
    by_id = {one for ids in asked.values() for one in ids}
    pages = {one: url for one, url in urls.items() if one in wanted and one not in by_id}
    given = {one: document for one, document in documents.items() if one in wanted}
    parts = await asyncio.gather(
        _read({**pages, **given}, enricher, deadline),
        *(_read_by_id(provider, ids, enricher, deadline) for provider, ids in asked.items() if ids),
    )
    return {name: source for part in parts for name, source in part.items()}


async def _read(
    sources: Mapping[str, str | SourceDocument | Found], enricher: Enricher, deadline: Deadline
) -> dict[str, Document | LeftOut]:
    return dict(zip(sources, await enricher.read([*sources.values()], deadline.remaining), strict=True))


async def _read_by_id(
    provider: ReadsById, ids: list[str], enricher: Enricher, deadline: Deadline
) -> dict[str, Document | LeftOut]:
    """Ask the provider for these sources, and read the texts that it returns as a worker reads them."""
    reason = NO_LONGER_FOUND
    found: dict[str, Found] = {}
    try:
        async with asyncio.timeout(deadline.remaining):
            found = {one.id: one for one in await provider.by_id(ids) if one.id is not None and one.id in ids}
    except Unreadable as failure:
        reason = str(failure)
    except TimeoutError:
        reason = LATE
    missing = {one: LeftOut(Wanted.of(1, Found("", one)), reason) for one in ids if one not in found}
    return {**missing, **await _read(found, enricher, deadline)}


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
