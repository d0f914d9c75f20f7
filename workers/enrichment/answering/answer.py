"""Checks the model's text by its profile, and adds citations and the sources' details to make a result's answer."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from schemas.result import Citation, SourceDetails, Support
from workers.enrichment.answering.cite import BEARING, SourceTexts, cited, supported_share, used
from workers.enrichment.answering.grounding import MAX_TITLE_CHARS, harmless
from workers.enrichment.answering.links import without_unknown_links
from workers.enrichment.answering.profile import Profile
from workers.enrichment.evidence import Evidence, NumberedSource

MAX_CHAIN: Final = 100
"""Cap on the items of an evidence chain that are checked, since an answer may have any number of items."""
_NO_NUMBER: Final = 1_000_000
_DIGITS: Final = re.compile(r"\s*\[?([1-9]\d{0,3})\]?\s*", re.ASCII)


Claim = tuple[int, int, str]
"""The start, end and source of a citation, without its level of support."""


class Unsupported(Exception):  # noqa: N818 - named after the event
    """The profile demands support, and no part of the answer has enough support."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a result. `sources` holds the sources that the answer uses, in the order of first use."""

    text: str
    sources: tuple[SourceDetails, ...]
    citations: tuple[Citation, ...]
    notes: tuple[str, ...] = ()
    supported_share: float = 1.0
    """Share of the answer that its sources support, from 0 to 1; 1 if the job asked for no sources."""

    def lowered(self, confidence: float | None) -> float | None:
        """Return the model's confidence with one half of it multiplied by the answer's supported share."""
        return None if confidence is None else confidence * (1 + self.supported_share) / 2


def claim_of(citation: Citation) -> Claim:
    """Return the start, end and source of a citation."""
    return citation.start, citation.end, citation.source


def answered(
    text: str, evidence: Evidence, profile: Profile, *, is_json: bool = False, refuted: Collection[Claim] = ()
) -> Answer:
    """Return the answer with citations, in the form that `profile` demands. Raises Unsupported.

    If the answer rests on no source, a note says so. If no source is usable, the profile's notice is put before the
    text, except for JSON (`is_json`).
    `refuted` holds the claims that the model's second check has refuted; the citations of these claims lose their
    support.
    """
    if not evidence.sources and profile.no_sources_notice and not is_json:
        text = f"{profile.no_sources_notice}\n\n{text.strip()}".rstrip()
    chain: list[Any] | None = None
    if profile.evidence_chain is None:
        text, _, found = cited(text, evidence)
        citations = [_without_support(one) if claim_of(one) in refuted else one for one in found]
        share = supported_share(text, citations)
    else:
        text = without_unknown_links(text, evidence)
        chain = _chain(text, profile.evidence_chain)
        citations = _chain_citations(chain or (), text, SourceTexts(evidence))
        share = _chain_share(citations)
    names = used(citations)
    notes = () if names else (_rests_on_nothing(evidence, profile, chain, citations),)
    if profile.minimum_support is not None:
        enough = BEARING[: BEARING.index(Support(profile.minimum_support)) + 1]
        if not any(citation.support in enough for citation in citations):
            raise Unsupported(
                f"the profile {profile.name} gives no answer without support, and no source supports a sentence of it"
            )
    by_id = {source.id: source for source in evidence.sources}
    bearing = [by_id[name] for name in names]
    details = tuple(_details(source, evidence) for source in bearing)
    if profile.evidence_list and bearing:
        text += without_unknown_links(_listed(zip(bearing, details, strict=True)), evidence)
    return Answer(text, details, tuple(citations), notes, share)


def _without_support(citation: Citation) -> Citation:
    return citation.model_copy(update={"support": Support.UNSUPPORTED, "quote": None})


def _rests_on_nothing(
    evidence: Evidence, profile: Profile, chain: list[Any] | None, citations: Sequence[Citation]
) -> str:
    if not evidence.sources:
        return "the answer rests on no source: no source could be used"
    if profile.evidence_chain is None:
        return "the answer rests on no source: no source supports any of its sentences"
    if citations:
        return "the answer rests on no source: no source supports any item of its evidence"
    why = "it is not the JSON of its profile" if chain is None else "the chain is empty"
    return f"the answer names no evidence: {why}"


def _details(source: NumberedSource, evidence: Evidence) -> SourceDetails:
    """Return the details that a source's page states; links are removed from the title."""
    title = " ".join(harmless(source.title or "", len(evidence.sources)).split())[:MAX_TITLE_CHARS]
    return SourceDetails(
        id=source.id,
        url=source.url,
        canonical_url=source.particulars.canonical_url,
        title=without_unknown_links(title, evidence) or None,
        published=source.particulars.published,
        doi=source.particulars.doi,
        read_by=source.particulars.read_by,
    )


def _listed(sources: Iterable[tuple[NumberedSource, SourceDetails]]) -> str:
    """Write a line for each source, so that readers can follow the citations even if they see only the text."""
    lines = []
    for source, details in sources:
        known = [details.title, details.published, details.id, f"doi:{details.doi}" if details.doi else None]
        lines.append(f"[{source.number}] {'. '.join(part for part in known if part)}")
    return "\n\nEvidence:\n" + "\n".join(lines)


# -- the evidence chain of a structured answer -----------------------------------------------------------------------


def _chain(text: str, field: str) -> list[Any] | None:
    """Return the items of the chain, or None if the answer is not the JSON that its profile demands."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    items = value.get(field) if isinstance(value, dict) else None
    return items[:MAX_CHAIN] if isinstance(items, list) else None


def _chain_share(citations: Sequence[Citation]) -> float:
    """Return the share of the chain's items that are supported by the sources that they name."""
    return sum(citation.support in BEARING for citation in citations) / len(citations) if citations else 0.0


def _chain_citations(chain: Iterable[Any], text: str, sources: SourceTexts) -> list[Citation]:
    """Return a citation for each item, with the level at which the item's source supports the item's quote.

    An item that names no known source is dangling. An item is unsupported if its source contradicts its `claim`,
    because a model may copy a quote exactly and still misread it.
    """
    citations: list[Citation] = []
    behind = 0
    for item in chain:
        fields = item if isinstance(item, dict) else {}
        quote = fields["quote"] if isinstance(fields.get("quote"), str) else ""
        number = _number(fields.get("source"))
        place = _place(text, quote, behind)
        behind = place[1] if place is not None else behind
        start, end = place or (0, len(text))
        name, support = sources.name(number), sources.support(quote, number)
        claim = fields.get("claim")
        if support in BEARING and isinstance(claim, str) and sources.denies(claim, number):
            support = Support.UNSUPPORTED
        citation = Citation(start=start, end=end, source=name, support=support)
        citations.append(sources.quoted(citation, quote, number))
    return citations


def _number(source: object) -> int:
    """Return the source's number, which may be an integer or a string.

    For any other value, return 0, which no source has.
    """
    if isinstance(source, str) and (digits := _DIGITS.fullmatch(source)) is not None:
        return int(digits.group(1))
    return source if type(source) is int and 0 < source < _NO_NUMBER else 0


def _place(text: str, quote: str, behind: int) -> tuple[int, int] | None:
    """Return the quote's span in the JSON, in code points; None if the JSON escapes the quote in an unusual way.

    The search starts at `behind`, the end of the previous quote, since two items may quote the same words.
    """
    for escaped in _spellings(quote) if quote else ():
        found = re.compile(rf'"quote"\s*:\s*"({re.escape(escaped)})"').search(text, behind)
        if found is not None:
            return found.span(1)
    return None


def _spellings(quote: str) -> Sequence[str]:
    return [json.dumps(quote, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
