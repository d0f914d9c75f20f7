"""Gives each job the judge of its answer: a cross-encoder of the worker, or the engine's own model.

The engine is asked in a short generation whether the premises bear the sentence. The judgement is only as good as the
model. A page that talks the model into "supported" gains nothing without the words: the rules of
`workers.enrichment.answering.judging` come first, and a sentence with other figures or names is never asked about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from schemas.codec import ReceivedJob
from telemetry.metrics import Metrics
from workers.engines.base import Engine, EngineError
from workers.enrichment.answering.grounding import ground, harmless
from workers.enrichment.answering.judging import Judge, JudgeAway, Verdict
from workers.enrichment.evidence import Evidence, NumberedSource
from workers.enrichment.settings import BY_ENGINE, EnrichmentSettings
from workers.inference.ground import SideRequests, Spend
from workers.inference.lifetime import Lifetimes

_TOKENS: Final = 16
"""Cap on the tokens of a verdict, which is one word; OpenAI's Responses API takes no smaller cap."""
_SENTENCE_CHARS: Final = 1000
_QUESTION: Final = (
    'Does source [1] say that this sentence is true, or that it is false: "{}"? Answer with one word: true if the '
    "source says so, false if the source says otherwise, unknown if the source does not tell."
)
_ANSWER: Final = re.compile(
    r"\W*(?:(?P<supported>true|yes)|(?P<contradicted>false|no)|(?P<undecided>unknown))\b", re.IGNORECASE
)


class Judges:
    """Makes the judge of each job, as the settings say."""

    def __init__(
        self,
        engine: Engine,
        settings: EnrichmentSettings,
        lifetimes: Lifetimes,
        metrics: Metrics,
        shared: Judge | None = None,
    ) -> None:
        self._requests = SideRequests(engine, "check", metrics)
        self._settings = settings
        self._lifetimes = lifetimes
        self._shared = shared

    def of(self, received: ReceivedJob, spend: Spend) -> tuple[Judge | None, float]:
        """Return the judge of a job's answers, or None without one, and the seconds that it may take.

        `spend` is called with the tokens of each judgement by the engine.
        """
        seconds = min(self._settings.entailment_seconds, max(0.0, self._lifetimes.remaining(received)))
        if self._settings.entailment == BY_ENGINE:
            return _EngineJudge(self._requests, received, spend), seconds
        return self._shared, seconds


@dataclass(frozen=True, slots=True)
class _EngineJudge:
    """Asks the engine's model about the sentences of one job."""

    requests: SideRequests
    received: ReceivedJob
    spend: Spend

    async def judge(self, sentence: str, premises: Sequence[str]) -> Verdict:
        """Ask the model in one short generation. Any other text than the three words decides nothing.

        Raises JudgeAway if the engine fails or even dies: the job's answer is complete without its judgement.
        """
        try:
            completion = await self.requests.answered(self.received, _prompt(sentence, premises), _TOKENS, self.spend)
        except EngineError:
            raise JudgeAway("the engine failed") from None
        found = _ANSWER.match(completion.text)
        return Verdict.UNDECIDED if found is None or found.lastgroup is None else Verdict(found.lastgroup)


def _prompt(sentence: str, premises: Sequence[str]) -> str:
    """Return the question with the premises before it, between the same marks as in a job's prompt."""
    source = NumberedSource(1, "1", None, None, tuple(premises))
    return ground(_QUESTION.format(harmless(sentence)[:_SENTENCE_CHARS]), Evidence((source,))).prompt or ""
