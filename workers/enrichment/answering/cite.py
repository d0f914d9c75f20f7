"""Reads an answer's citations, judges each sentence, and says how well the sources support the answer.

`Reading` is one answer on its way: the rules read it in a thread, a judge decides its open claims, and `citations`
writes the result's citations. A sentence is judged against the union of the sources that it cites, and a sentence
without a citation against all sources.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Final

from schemas.result import Citation, Support
from workers.enrichment.answering.grounding import visible
from workers.enrichment.answering.judging import COMMON, Finding, Judge, JudgeAway, Sources, Verdict
from workers.enrichment.answering.links import without_unknown_links
from workers.enrichment.answering.profile import AnswerLevel
from workers.enrichment.answering.quotes import Quoter, words
from workers.enrichment.answering.sentences import Sentence, sentences
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
        self._quoter = Quoter({one.number: (one.title or "", *one.passages) for one in evidence.sources}, COMMON)
        found = islice(sentences(self.text, self.sources.numbers), 0 if is_json else MAX_SENTENCES)
        self.claims = [self._claim(one) for one in found if one.is_claim or self._dangles(one)]

    @cached_property
    def open(self) -> dict[int, tuple[str, Sequence[str]]]:
        """The claims that the rules leave to a judge, by index: each sentence with its premises."""
        return {
            at: (claim.sentence.text, [text for _, text in claim.finding.premises])
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

    def quoted(self, citation: Citation, text: str, number: int) -> Citation:
        """Return the citation. If it has support, add the words of source `number` that are nearest to `text`."""
        found = self._quoter.quote(words(text), number) if citation.support in BEARING else None
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
        near = dict.fromkeys(number for number, _ in whole.premises)
        alone = [self.sources.find(sentence, [number]) for number in near]
        return next((one for one in alone if one.support in BEARING), whole)

    def _cited(self, claim: Claim, level: Support) -> Iterator[Citation]:
        """Yield a citation for each cited source, or one of the source that bears a sentence without a citation."""
        carried = dict.fromkeys(number for number, _ in claim.finding.premises)
        for number in claim.sentence.numbers:
            known = level if number in carried else Support.UNSUPPORTED
            yield self._citation(claim, number, known if number in self.sources.numbers else Support.DANGLING)
        if not claim.sentence.numbers and level in BEARING:
            yield from (self._citation(claim, number, level) for number in islice(carried, 1))

    def _citation(self, claim: Claim, number: int, level: Support) -> Citation:
        one = claim.sentence
        citation = Citation(start=one.start, end=one.end, source=self.sources.name(number), support=level)
        return self.quoted(citation, one.text, number)


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
