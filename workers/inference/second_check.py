"""Lets the engine judge once more whether a source contradicts the sentence that cites it.

The rules of `workers.enrichment.answering` find only contradictions in a source's own words. Here, one short generation
judges each supported sentence. The check is only as good as the model.

A verdict can only take support away. So a page that talks the model into "no" gets only the result that it would have
got without this check.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from schemas.codec import ReceivedJob
from schemas.result import Citation
from telemetry.metrics import Metrics
from workers.engines.base import Engine, EngineError
from workers.enrichment.answering.answer import Answer, Claim, claim_of
from workers.enrichment.answering.cite import BEARING, CITATION
from workers.enrichment.answering.grounding import ground, harmless
from workers.enrichment.evidence import Evidence, NumberedSource
from workers.enrichment.settings import EnrichmentSettings
from workers.inference.lifetime import Lifetimes
from workers.inference.side_request import Spend, side_request

CHECK_SECONDS: Final = 10.0
"""Timeout of all checks of an answer. A sentence that gets no verdict in time keeps its support."""
_TOKENS: Final = 16
"""Cap on the tokens of a verdict, which is one word; OpenAI's Responses API takes no smaller cap."""
_SENTENCE_CHARS: Final = 1000
_QUESTION: Final = 'Does source [1] contradict this sentence: "{}"? Answer with one word, yes or no.'
_VERDICT: Final = re.compile(r"\W*(?:(yes)|no)\b", re.IGNORECASE)

Check = Callable[[Evidence, Answer], Awaitable[tuple[frozenset[Claim], list[str]]]]
"""Returns the refuted claims of an answer, and notes for the result."""


class SecondCheck:
    """Judges answers on the worker's engine."""

    def __init__(self, engine: Engine, settings: EnrichmentSettings, lifetimes: Lifetimes, metrics: Metrics) -> None:
        self._engine = engine
        self._most = settings.checked_sentences
        self._lifetimes = lifetimes
        self._tokens = metrics.tokens.labels("check")
        self._numbers = itertools.count()

    def of(self, received: ReceivedJob, spend: Spend) -> Check | None:
        """Return the check of a job's answers; None if the settings turn it off.

        `spend` is called with the tokens of each check.
        """
        return (lambda evidence, answer: self._refuted(received, spend, evidence, answer)) if self._most else None

    async def _refuted(
        self, received: ReceivedJob, spend: Spend, evidence: Evidence, answer: Answer
    ) -> tuple[frozenset[Claim], list[str]]:
        """Judge the answer's supported sentences concurrently, at most the number in the settings."""
        sources = {source.id: source for source in evidence.sources}
        supported = [citation for citation in answer.citations if citation.support in BEARING][: self._most]
        seconds = min(CHECK_SECONDS, self._lifetimes.remaining(received))
        if not supported or seconds <= 0:
            return frozenset(), []
        prompts = (_prompt(evidence, sources[one.source], answer.text[one.start : one.end]) for one in supported)
        tasks = [asyncio.create_task(self._verdict(received, spend, prompt), name="second-check") for prompt in prompts]
        try:
            await asyncio.wait(tasks, timeout=seconds)
        finally:
            for task in tasks:
                task.cancel()
            verdicts = await asyncio.gather(*tasks, return_exceptions=True)
        return _judged(supported, verdicts)

    async def _verdict(self, received: ReceivedJob, spend: Spend, prompt: str | None) -> bool | None:
        """Return the model's verdict; None for another text, such as that of a model that still reasons.

        Raises EngineError.
        """
        name = f"check-{next(self._numbers)}"
        completion = await self._engine.generate(side_request(received, name, prompt, _TOKENS))
        tokens = completion.prompt_tokens + completion.completion_tokens
        self._tokens.inc(tokens)
        spend(tokens)
        found = _VERDICT.match(completion.text)
        return found[1] is not None if found is not None else None


def _prompt(evidence: Evidence, source: NumberedSource, sentence: str) -> str | None:
    """Return the check's prompt: the source before the question, between the same marks as in a job's prompt."""
    alone = replace(evidence, sources=(replace(source, number=1),))
    return ground(_QUESTION.format(harmless(CITATION.sub(" ", sentence))[:_SENTENCE_CHARS]), alone).prompt


def _judged(
    supported: list[Citation], verdicts: list[bool | BaseException | None]
) -> tuple[frozenset[Claim], list[str]]:
    """Return the refuted claims and the notes.

    If the engine fails or even dies at a check, the check has no verdict: the job's answer is complete without the
    check. Other errors are defects of ours, and are raised.
    """
    for verdict in verdicts:
        if not isinstance(verdict, bool | EngineError | asyncio.CancelledError | None):
            raise verdict
    refuted = frozenset(claim_of(one) for one, verdict in zip(supported, verdicts, strict=True) if verdict is True)
    missing = sum(not isinstance(verdict, bool) for verdict in verdicts)
    notes = [f"the model's second check refuted {len(refuted)} of {len(supported)} citations"] if refuted else []
    notes += [f"the model's second check gave no verdict on {missing} of {len(supported)} citations"] if missing else []
    return refuted, notes
