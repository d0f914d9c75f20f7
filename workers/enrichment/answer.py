"""From what the model wrote to what a job's result says: cited, held against its profile, with the sources' details."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from schemas.result import Citation, SourceDetails, Support
from workers.enrichment.cite import BEARING, cited, supported_share, words
from workers.enrichment.evidence import Evidence, NumberedSource
from workers.enrichment.grounding import MAX_TITLE_CHARS, harmless
from workers.enrichment.profile import Profile

MAX_CHAIN: Final = 100
"""Items of an evidence chain that are checked; an answer's length is up to its job."""


class Unsupported(Exception):  # noqa: N818 - it names what happened
    """The profile gives no answer without support, and no part of this one has enough."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the result says. `sources` are those that the answer uses, in the order of their first use."""

    text: str
    sources: tuple[SourceDetails, ...]
    citations: tuple[Citation, ...]
    notes: tuple[str, ...] = ()
    supported_share: float = 1.0
    """The part of it that its sources bear out, from 0 to 1; all of it where no sources were asked for."""

    def lowered(self, confidence: float | None) -> float | None:
        """The model's confidence as far as the answer is supported: half of it is for what the sources say."""
        return None if confidence is None else confidence * (1 + self.supported_share) / 2


def answered(text: str, evidence: Evidence, profile: Profile, *, is_json: bool = False) -> Answer:
    """The answer with its citations, as its profile wants it. `is_json`: nothing may be put before it.

    Where it rests on no source, a note says so; and where none could be used, a free text itself. Raises Unsupported.
    """
    if not evidence.sources and profile.no_sources_notice and not is_json:
        text = f"{profile.no_sources_notice}\n\n{text.strip()}".rstrip()
    text, used, citations = cited(text, evidence)
    chain = _chain(text, profile.evidence_chain) if profile.evidence_chain is not None else None
    if profile.evidence_chain is not None:
        citations = list(_chain_citations(chain or [], text, evidence))
        used = list(dict.fromkeys(citation.source for citation in citations if citation.support in BEARING))
    notes = () if used else (_rests_on_nothing(evidence, profile, chain, citations),)
    if profile.minimum_support is not None:
        enough = BEARING[: BEARING.index(Support(profile.minimum_support)) + 1]
        if not any(citation.support in enough for citation in citations):
            raise Unsupported(f"the profile {profile.name} gives no answer without support, and no sentence has any")
    share = _chain_share(citations) if profile.evidence_chain is not None else supported_share(text, citations)
    by_id = {source.id: source for source in evidence.sources}
    sources = [by_id[name] for name in used if name in by_id]
    if profile.evidence_list and sources:
        text += _listed(sources)
    return Answer(text, tuple(map(_details, sources)), tuple(citations), notes, share)


def _rests_on_nothing(
    evidence: Evidence, profile: Profile, chain: list[dict[str, Any]] | None, citations: Sequence[Citation]
) -> str:
    if not evidence.sources:
        return "the answer rests on no source: none could be used"
    if profile.evidence_chain is None:
        return "the answer rests on no source: none bears out a sentence of it"
    if citations:
        return "the answer rests on no source: none bears out an item of its evidence"
    why = "it is not the JSON of its profile" if chain is None else "the chain is empty"
    return f"the answer names no evidence: {why}"


def _details(source: NumberedSource) -> SourceDetails:
    return SourceDetails(
        id=source.id,
        url=source.particulars.canonical_url or source.url,
        title=" ".join(harmless(source.title or "").split())[:MAX_TITLE_CHARS] or None,
        published=source.particulars.published,
        doi=source.particulars.doi,
    )


def _listed(sources: Iterable[NumberedSource]) -> str:
    """A line for each source, below the answer, so that its citations can be followed where only the text is shown."""
    lines = []
    for source in sources:
        details = _details(source)
        known = [details.title, details.published, details.id, f"doi:{details.doi}" if details.doi else None]
        lines.append(f"[{source.number}] {'. '.join(part for part in known if part)}")
    return "\n\nEvidence:\n" + "\n".join(lines)


# -- the evidence chain of a structured answer -----------------------------------------------------------------------


def _chain(text: str, field: str) -> list[dict[str, Any]] | None:
    """The items of the chain; None where the answer is not the JSON that it should be."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    items = value.get(field) if isinstance(value, dict) else None
    return [item for item in items[:MAX_CHAIN] if isinstance(item, dict)] if isinstance(items, list) else None


def _chain_share(citations: Sequence[Citation]) -> float:
    """The part of the chain's items that their sources bear out."""
    return sum(citation.support in BEARING for citation in citations) / len(citations) if citations else 0.0


def _chain_citations(chain: Iterable[dict[str, Any]], text: str, evidence: Evidence) -> Iterator[Citation]:
    """How far each item's quote stands in the source that it names; an item that names none has no citation."""
    behind = 0
    for item in chain:
        number, quote = item.get("source"), item.get("quote")
        if type(number) is not int or not isinstance(quote, str):
            continue
        place = _place(text, quote, behind)
        behind = place[1] if place is not None else behind
        start, end = place or (0, len(text))
        said = " ".join(words(quote))  # one sentence, whatever full stops are in it
        _, _, found = cited(f"{said} [{number}]", evidence)
        if said and found:
            yield found[0].model_copy(update={"start": start, "end": end})


def _place(text: str, quote: str, behind: int) -> tuple[int, int] | None:
    """Where the quote stands in the JSON, in code points; None where that is written with other escapes.

    `behind` is where the quote before it ends: two items may quote the same words, which their claims may hold too.
    """
    for escaped in _spellings(quote):
        found = re.compile(rf'"quote"\s*:\s*"({re.escape(escaped)})"').search(text, behind)
        if found is not None:
            return found.span(1)
    return None


def _spellings(quote: str) -> Sequence[str]:
    return [json.dumps(quote, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
