"""Reads the answers of one completion: each answer's citations and JSON, or the reason why the answer is unusable."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from schemas.job import Job
from schemas.result import ResultChoice, ResultError, SourceDetails
from workers.engines.base import Completion
from workers.enrichment.answering.answer import Answer, Unsupported, answered
from workers.enrichment.answering.links import without_unknown_links
from workers.inference.ground import GroundedRequest
from workers.inference.json_answers import NotJson, require_json
from workers.inference.second_check import Check

LONG_ANSWER_CHARS = 10_000
_UNFINISHED = {
    "content_filter": "the engine's content filter held the answer back",
    "tool_calls": "the model called a tool instead of answering, and no call of the job's tools was found",
    "repetition": "the model repeated itself until the engine ended the answer",
}


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """A usable answer, with its citations."""

    completion: Completion
    answer: Answer
    reasoning: str | None

    @property
    def confidence(self) -> float | None:
        """The answer's confidence; sentences without a source lower the confidence."""
        return self.answer.lowered(self.completion.confidence)

    def choice(self, index: int) -> ResultChoice:
        """Return the answer as one of a result's choices."""
        return ResultChoice.model_validate(
            {
                "index": index,
                "text": self.answer.text,
                "reasoning": self.reasoning,
                "finish_reason": self.completion.finish_reason,
                "confidence": self.confidence,
                "citations": list(self.answer.citations),
                "tool_calls": list(self.completion.tool_calls) or None,
                "logprobs": self.completion.logprobs,
            }
        )


async def read_answers(
    completion: Completion, asked: GroundedRequest, job: Job, check: Check | None = None
) -> list[ReadAnswer | ResultError]:
    """Return the completion's answers, at most the job's `n`. A ResultError replaces an unusable answer.

    `check` judges the citations of each answer once more.
    """
    return [await _read(each, asked, job.max_tokens, check) for each in (completion, *completion.further)[: job.n]]


def sources_of(answers: Sequence[ReadAnswer]) -> list[SourceDetails]:
    """Return the sources that the answers use, in the order of their first use."""
    return list({source.id: source for each in answers for source in each.answer.sources}.values())


def notes_on(read: Sequence[ReadAnswer | ResultError], wanted: int) -> list[str]:
    """Return the answers' notes, and notes about the answers that are missing."""
    notes = [note for each in read if isinstance(each, ReadAnswer) for note in each.answer.notes]
    left_out = [
        f"answer {number} of {wanted} was left out: {each.message}"
        for number, each in enumerate(read, 1)
        if isinstance(each, ResultError)
    ]
    few = [f"n: the engine gave {len(read)} of {wanted} answers"] if len(read) < wanted else []
    return list(dict.fromkeys((*notes, *left_out, *few)))


async def _read(
    completion: Completion, asked: GroundedRequest, max_tokens: int, check: Check | None
) -> ReadAnswer | ResultError:
    ends = ("stop", "length", "tool_calls") if completion.tool_calls else ("stop", "length")
    if completion.finish_reason not in ends:
        why = _UNFINISHED.get(completion.finish_reason, "the engine ended the answer for an unknown reason")
        return ResultError(code="unfinished", message=why)
    try:
        answer = await _answer(completion, asked, max_tokens, check)
        reasoning = completion.reasoning
        return ReadAnswer(completion, answer, await _without_links(reasoning, asked) if reasoning is not None else None)
    except (NotJson, Unsupported) as wrong:
        return ResultError(code="unsupported" if isinstance(wrong, Unsupported) else "not_json", message=str(wrong))


async def _answer(completion: Completion, asked: GroundedRequest, max_tokens: int, check: Check | None) -> Answer:
    """Return the answer with its citations. Raises NotJson and Unsupported.

    A thread checks a long answer, so that the event loop can serve other jobs meanwhile.
    """
    if completion.tool_calls:  # the model answers in a later job, which brings the results of the tools
        return Answer(await _without_links(completion.text, asked), (), ())
    if asked.wants_json:
        require_json(completion, max_tokens)
    if asked.evidence is None or asked.profile is None:
        return Answer(completion.text, (), ())
    is_long = len(completion.text) > LONG_ANSWER_CHARS
    read = partial(answered, completion.text, asked.evidence, asked.profile, is_json=asked.wants_json)
    answer = await asyncio.to_thread(read) if is_long else read()
    if check is None or asked.wants_json:
        return answer
    refuted, notes = await check(asked.evidence, answer)
    if refuted:
        again = partial(read, refuted=refuted)
        answer = await asyncio.to_thread(again) if is_long else again()
    return replace(answer, notes=(*answer.notes, *notes))


async def _without_links(text: str, asked: GroundedRequest) -> str:
    """Return a text without links that a page could have put into the text. Long texts are read in a thread."""
    if asked.evidence is None:
        return text
    read = partial(without_unknown_links, text, asked.evidence)
    return read() if len(text) <= LONG_ANSWER_CHARS else await asyncio.to_thread(read)
