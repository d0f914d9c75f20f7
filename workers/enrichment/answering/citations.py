"""Reads an answer's citations, judges each sentence, and makes a result's answer in the form of its profile.

A `Reading` is one answer, read by the rules in a thread. A sentence is judged against the union of the sources that it
cites, and a sentence without a citation against all sources. A judge decides the open claims of a `Draft`, and
`Draft.answer` is the outcome, with citations and the sources' details.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Any, Final

from schemas.result import AnswerSupport, Citation, JudgedSentence, SourceDetails, Support
from workers.enrichment.answering.grounding import MAX_TITLE_CHARS, harmless, visible
from workers.enrichment.answering.judging import Finding, Judge, JudgeAway, Sources, Verdict, tokens
from workers.enrichment.answering.languages import Language, language_of
from workers.enrichment.answering.links import without_unknown_links
from workers.enrichment.answering.profile import AnswerLevel, Profile
from workers.enrichment.answering.quantities import figures, missing, years_of
from workers.enrichment.answering.quotes import Quoter, without_links
from workers.enrichment.answering.sentences import Sentence, in_one_line, normal, sentences
from workers.enrichment.evidence import Evidence, NumberedSource

BEARING: Final = (Support.EXACT, Support.FUZZY, Support.ENTAILED, Support.LEXICAL)
"""The levels at which a source supports a sentence, from the strongest."""
MAX_SENTENCES: Final = 500
"""Cap on the sentences that are compared with sources, since an answer may have any number of sentences."""
MAX_CALLS: Final = 24
"""Cap on the sentences of a job that a judge reads."""
JUDGE_SECONDS: Final = 2.0
"""Time of a job in which its judge reads sentences."""
NOT_CHECKED: Final = "entailment"
NOT_CHECKED_IN_TIME: Final = "entailment: time"


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence that says something, with the outcome of the rules."""

    sentence: Sentence
    finding: Finding

    def outcome(self, verdict: Verdict | None) -> Support:
        """Return the support after the judge's verdict; None if no judge has read the claim."""
        if self.finding.is_ruled or verdict in (None, Verdict.NOT_CONTRADICTED):
            return self.finding.support
        if verdict is Verdict.SUPPORTED:
            return Support.ENTAILED
        return Support.CONTRADICTED if verdict is Verdict.CONTRADICTED else Support.UNSUPPORTED


Verdicts = Mapping[int, Verdict]
"""Verdicts by the index of the claim."""
NO_VERDICTS: Final[Verdicts] = MappingProxyType({})


class Reading:
    """An answer, read by the rules. An answer in JSON has no sentences; its evidence chain adds the claims."""

    def __init__(self, text: str, evidence: Evidence, *, is_json: bool = False) -> None:
        self.text = without_unknown_links(text, evidence)
        self._evidence = evidence
        self.sources = Sources(evidence)
        self._quoter = Quoter({one.number: (one.title or "", *one.passages) for one in evidence.sources})
        read = next((one.passages[0] for one in evidence.sources if one.passages), "")
        self._language = language_of(read)
        found = sentences(self.text, self.sources.numbers, self.language_of(self.text))
        found = islice(found, 0 if is_json else MAX_SENTENCES)
        self.claims = [self._claim(one) for one in found if one.is_claim or self._dangles(one)]

    def language_of(self, text: str) -> Language:
        """Return the language of a text of the answer; that of the sources, if the text is too short to tell."""
        return language_of(text, self._language)

    @cached_property
    def open(self) -> dict[int, tuple[str, Sequence[str]]]:
        """The claims that the rules leave to a judge, by index: each sentence with its premises."""
        return {
            at: (claim.sentence.text, [one.text for one in claim.finding.premises])
            for at, claim in enumerate(self.claims)
            if not claim.finding.is_ruled and claim.finding.premises
        }

    def outcomes(self, verdicts: Verdicts = NO_VERDICTS) -> list[Support]:
        """Return the support of each claim."""
        return [claim.outcome(verdicts.get(at)) for at, claim in enumerate(self.claims)]

    def citations(self, verdicts: Verdicts = NO_VERDICTS) -> list[Citation]:
        """Return the answer's citations, in order. Spans count code points of `text`."""
        outcomes = self.outcomes(verdicts)
        return [one for claim, level in zip(self.claims, outcomes, strict=True) for one in self._cited(claim, level)]

    def quoted(self, citation: Citation, number: int, *runs: str) -> Citation:
        """Return the citation. If it has support, add the first of these runs of words that source `number` has."""
        found = self._quoter.quote(number, *runs) if citation.support in BEARING else None
        if found is None:
            return citation
        clean = {name: without_unknown_links(visible(part), self._evidence) for name, part in found}
        return citation.model_copy(update={"quote": found.model_copy(update=clean)})

    def _dangles(self, sentence: Sentence) -> bool:
        return any(number not in self.sources.numbers for number in sentence.numbers)

    def _claim(self, sentence: Sentence) -> Claim:
        known = [number for number in sentence.numbers if number in self.sources.numbers]
        if sentence.numbers and not known:
            return Claim(sentence, Finding(Support.DANGLING, is_ruled=True))
        return Claim(sentence, self._finding(sentence, known or self.sources.numbers))

    def _finding(self, sentence: Sentence, numbers: Collection[int]) -> Finding:
        """Judge against the union of the sources; if it does not bear the sentence, against each source alone.

        A source alone may bear a sentence although another source denies it.
        """
        whole = self.sources.find(sentence, numbers)
        if whole.support in BEARING or len(numbers) == 1:
            return whole
        near = dict.fromkeys(one.number for one in whole.premises)
        alone = [self.sources.find(sentence, [number]) for number in near]
        return next((one for one in alone if one.support in BEARING), whole)

    def _cited(self, claim: Claim, level: Support) -> Iterator[Citation]:
        """Yield a citation for each cited source, or one of the source that bears a sentence without a citation."""
        carried = dict.fromkeys(one.number for one in claim.finding.premises)
        for number in claim.sentence.numbers:
            known = level if number in carried else Support.UNSUPPORTED
            yield self._citation(claim, number, known if number in self.sources.numbers else Support.DANGLING)
        if not claim.sentence.numbers and level in BEARING:
            yield from (self._citation(claim, number, level) for number in islice(carried, 1))

    def _citation(self, claim: Claim, number: int, level: Support) -> Citation:
        one = claim.sentence
        citation = Citation(start=one.start, end=one.end, source=self.sources.name(number), support=level)
        nearest = (near.written for near in claim.finding.premises if near.number == number)
        return self.quoted(citation, number, one.text, *nearest)


def level_of(outcomes: Sequence[Support], *, is_empty: bool = False) -> AnswerLevel:
    """Return the support of an answer, which is as supported as its worst sentence.

    An answer without a claim, such as "the sources do not say", has all the support that it needs; an empty answer has
    none.
    """
    if Support.CONTRADICTED in outcomes:
        return "contradicted"
    borne = sum(one in BEARING for one in outcomes)
    if borne == len(outcomes):
        return "none" if is_empty else "all"
    return "some" if borne else "none"


async def judged(
    claims: Mapping[int, tuple[str, Sequence[str]]],
    judge: Judge | None,
    *,
    seconds: float = JUDGE_SECONDS,
    calls: int = MAX_CALLS,
) -> tuple[dict[int, Verdict], list[str]]:
    """Let the judge read these sentences with their premises; return the verdicts, and what was not checked.

    At most `calls` sentences are read, in `seconds`; the judge reads them one after the other or together, as it likes.
    """
    if judge is None:
        return {}, [NOT_CHECKED]
    if not claims:
        return {}, []
    tasks = {
        at: asyncio.create_task(judge.judge(sentence, premises), name="judge")
        for at, (sentence, premises) in islice(claims.items(), calls)
    }
    try:
        await asyncio.wait(tasks.values(), timeout=max(0.0, seconds))
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    verdicts: dict[int, Verdict] = {}
    lost: list[str] = []
    for at, task in tasks.items():
        error = None if task.cancelled() else task.exception()
        if isinstance(error, JudgeAway):
            lost.append(f"{NOT_CHECKED}: {error}")
        elif error is not None:
            raise error
        elif not task.cancelled():
            verdicts[at] = task.result()
    if len(verdicts) + len(lost) < len(claims):
        lost.append(NOT_CHECKED_IN_TIME)
    return verdicts, list(dict.fromkeys(lost))


def contradict(one: str, other: str) -> bool:
    """True if one of two sentences contradicts the other by the rules. The order has no effect."""
    return any(_denies(said, told) for said, told in ((one, other), (other, one)))


def _denies(said: str, told: str) -> bool:
    sources = Sources(Evidence((NumberedSource(1, "", None, None, (told,)),)))
    return any(sources.find(one, [1]).support is Support.CONTRADICTED for one in sentences(said, ()))


MAX_CHAIN: Final = 100
"""Cap on the items of an evidence chain that are checked, since an answer may have any number of items."""
_NO_NUMBER: Final = 1_000_000
_DIGITS: Final = re.compile(r"\s*\[?([1-9]\d{0,3})\]?\s*", re.ASCII)


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
    """Share of the answer's claims that its sources support, from 0 to 1; 1 if the job asked for no sources."""
    support: AnswerSupport | None = None
    """The support of the whole answer; None if the job asked for no sources."""

    def lowered(self, confidence: float | None) -> float | None:
        """Return the model's confidence with one half of it multiplied by the answer's supported share."""
        return None if confidence is None else confidence * (1 + self.supported_share) / 2


@dataclass
class Draft:
    """A text of the model, read by the rules and by no judge yet. Reading takes milliseconds: call it in a thread.

    If no source is usable, the profile's notice is put before the text, except for JSON (`is_json`).
    """

    reading: Reading
    evidence: Evidence
    profile: Profile
    chain: _Chain | None = None
    """The evidence chain of an answer in JSON."""

    @classmethod
    def of(cls, text: str, evidence: Evidence, profile: Profile, *, is_json: bool = False) -> Draft:
        """Read the text."""
        if not evidence.sources and profile.no_sources_notice and not is_json:
            text = f"{profile.no_sources_notice}\n\n{text.strip()}".rstrip()
        name = profile.evidence_chain
        reading = Reading(text, evidence, is_json=name is not None)
        return cls(reading, evidence, profile, None if name is None else _Chain(reading, name))

    @property
    def open(self) -> dict[int, tuple[str, Sequence[str]]]:
        """The claims that the rules leave to a judge, by index: each sentence with its premises."""
        return self.reading.open

    def answer(self, verdicts: Verdicts = NO_VERDICTS, not_checked: Sequence[str] = (NOT_CHECKED,)) -> Answer:
        """Return the answer in the form that the profile demands. Raises Unsupported.

        If the answer rests on no source, a note says so.
        """
        reading, text = self.reading, self.reading.text
        outcomes = reading.outcomes(verdicts)
        citations = reading.citations(verdicts) if self.chain is None else self.chain.citations(outcomes)
        names = list(dict.fromkeys(one.source for one in citations if one.support in BEARING))
        level, sentences_judged = self.level(verdicts), self.judged(verdicts)
        if level not in self.profile.accepts:
            raise Unsupported(_refusal(self.profile, level))
        by_id = {source.id: source for source in self.evidence.sources}
        bearing = [by_id[name] for name in names]
        details = tuple(_details(source, self.evidence) for source in bearing)
        if self.profile.evidence_list and bearing:
            text += without_unknown_links(_listed(zip(bearing, details, strict=True)), self.evidence)
        notes = [] if names else [self._rests_on_nothing(citations)]
        notes += self.chain.notes if self.chain is not None else []
        support = AnswerSupport(
            support=level,
            sentences=[one for one in sentences_judged if one.support not in BEARING],
            not_checked=list(not_checked) if self.evidence.sources else [],
        )
        borne = [one.support in BEARING for one in sentences_judged]
        share = sum(borne) / len(borne) if borne else float(level == "all")
        return Answer(text, details, tuple(citations), tuple(notes), share, support)

    def judged(self, verdicts: Verdicts = NO_VERDICTS) -> list[JudgedSentence]:
        """Return each sentence with a claim, or each item of the evidence chain, with its support."""
        outcomes = self.reading.outcomes(verdicts)
        if self.chain is not None:
            return self.chain.judged(outcomes)
        return [
            JudgedSentence(start=one.sentence.start, end=one.sentence.end, support=each, missing=list(one.finding.lost))
            for one, each in zip(self.reading.claims, outcomes, strict=True)
        ]

    def level(self, verdicts: Verdicts = NO_VERDICTS) -> AnswerLevel:
        """Return the support of the answer as a whole."""
        is_empty = not self.reading.text.strip() or not self.evidence.sources
        is_empty = is_empty or (self.chain is not None and not self.chain.items)
        return level_of([one.support for one in self.judged(verdicts)], is_empty=is_empty)

    def _rests_on_nothing(self, citations: Sequence[Citation]) -> str:
        if not self.evidence.sources:
            return "the answer rests on no source: no source could be used"
        if self.chain is None:
            return "the answer rests on no source: no source supports any of its sentences"
        if citations:
            return "the answer rests on no source: no source supports any item of its evidence"
        why = "the chain is empty" if self.chain.is_chain else "it is not the JSON of its profile"
        return f"the answer names no evidence: {why}"


async def answered(
    text: str, evidence: Evidence, profile: Profile, *, is_json: bool = False, judge: Judge | None = None
) -> Answer:
    """Read, judge and return an answer in one call. Raises Unsupported."""
    draft = Draft.of(text, evidence, profile, is_json=is_json)
    return draft.answer(*await judged(draft.open, judge))


def _refusal(profile: Profile, level: str) -> str:
    said = {
        "some": "some sentences of the answer have no support",
        "none": "no source supports a sentence of it",
        "contradicted": "a source contradicts a sentence of it",
    }
    return f"the profile {profile.name} gives no answer without support, and {said.get(level, level)}"


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


@dataclass(frozen=True, slots=True)
class _Item:
    """An item of an evidence chain. `start` and `end` are the place of its quote, or else the whole answer."""

    start: int
    end: int
    quote: str
    number: int
    """The number of the source; 0 if the item names none."""
    claim: int | None
    """The index of the item's claim among the claims of the reading; None if it has no claim or no known source."""


class _Chain:
    """The items of an evidence chain: each has a claim, and the words of a source, copied exactly.

    A quote is exact or false. The item's `claim` is judged like a sentence of an answer, because a model may copy a
    quote and still misread it. Every figure outside of the chain has to stand in an item of it.
    """

    def __init__(self, reading: Reading, name: str) -> None:
        self._reading = reading
        value = _value(reading.text)
        items = value.get(name) if isinstance(value, dict) else None
        self.is_chain = isinstance(items, list)
        """False if the answer is not the JSON of its profile."""
        self.items: list[_Item] = []
        behind = 0
        for fields in items[:MAX_CHAIN] if isinstance(items, list) else ():
            item, behind = self._read(fields if isinstance(fields, dict) else {}, behind)
            self.items.append(item)
        self._strange = self._figures_elsewhere(value, name) if isinstance(value, dict) else []
        self.notes = [f"{one} stands in no item of the answer's evidence" for one in self._strange]

    def judged(self, of_claims: Sequence[Support]) -> list[JudgedSentence]:
        """Return each item, and each figure outside of the chain, with its support."""
        items = [
            JudgedSentence(start=one.start, end=one.end, support=self._outcome(one, of_claims), missing=self._lost(one))
            for one in self.items
        ]
        end = len(self._reading.text)
        strange = [
            JudgedSentence(start=0, end=end, support=Support.UNSUPPORTED, missing=[one]) for one in self._strange
        ]
        return items + strange

    def citations(self, of_claims: Sequence[Support]) -> list[Citation]:
        """Return a citation for each item."""
        found = []
        for one in self.items:
            name, support = self._reading.sources.name(one.number), self._outcome(one, of_claims)
            citation = Citation(start=one.start, end=one.end, source=name, support=support)
            found.append(self._reading.quoted(citation, one.number, one.quote))
        return found

    def _read(self, fields: dict[str, Any], behind: int) -> tuple[_Item, int]:
        """Return an item, and the end of its quote, behind which the next quote is looked for."""
        quote = fields["quote"] if isinstance(fields.get("quote"), str) else ""
        number = _number(fields.get("source"))
        place = _place(self._reading.text, quote, behind)
        start, end = place or (0, len(self._reading.text))
        said = in_one_line(fields["claim"]) if isinstance(fields.get("claim"), str) else ""
        claim = None
        if said and number in self._reading.sources.numbers:
            sentence = Sentence(start, end, said, language=self._reading.language_of(said))
            claim = len(self._reading.claims)
            self._reading.claims.append(Claim(sentence, self._reading.sources.find(sentence, [number])))
        return _Item(start, end, quote, number, claim), end if place is not None else behind

    def _lost(self, item: _Item) -> list[str]:
        return list(self._reading.claims[item.claim].finding.lost) if item.claim is not None else []

    def _outcome(self, item: _Item, of_claims: Sequence[Support]) -> Support:
        """Return the support of the quote, unless the claim has what its source lacks, or a judge denies it."""
        if item.number not in self._reading.sources.numbers:
            return Support.DANGLING
        if not self._reading.sources[item.number].quotes(tokens(without_links(item.quote))):
            return Support.UNSUPPORTED
        if item.claim is not None and of_claims[item.claim] is Support.CONTRADICTED:
            return Support.CONTRADICTED
        return Support.UNSUPPORTED if self._lost(item) else Support.EXACT

    def _figures_elsewhere(self, value: dict[str, Any], name: str) -> list[str]:
        """Return the figures in the answer's other texts that no item's quote has."""
        told = [figures(normal(one.quote)) for one in self.items]
        years = years_of([date for one in told for date in one.dates])
        texts = [text for key, part in value.items() if key != name for text in _texts(part)]
        lost = [
            one for text in texts for each in sentences(text, ()) for one in missing(figures(each.text), told, years)
        ]
        return list(dict.fromkeys(lost))[:MAX_CHAIN]


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _value(text: str) -> object:
    """Return the JSON value, or None if the answer is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


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
