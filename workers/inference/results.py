"""Judges the engine's answers, and builds the results of jobs that succeeded, failed, expired or were cancelled.

Each answer of a completion gets its citations, or the reason why it is unusable. Embeddings, scores and ranks become
the result's fields of these names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Final

from schemas.codec import ReceivedJob, write_plain_result
from schemas.job import Job
from schemas.kinds import CLASSIFY, SCORE
from schemas.outcome import Outcome
from schemas.result import Result, ResultChoice, ResultError, SourceDetails
from schemas.rollout.facts import DEFAULT_ALIAS
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.base import Completion, Engine
from workers.engines.pooling import Pooled
from workers.enrichment.answering.citations import JUDGE_SECONDS, Answer, Draft, Unsupported, judged
from workers.enrichment.answering.judging import Judge
from workers.enrichment.answering.links import without_unknown_links
from workers.inference.answer_form import BadForm, InvalidOutput, require_form, require_json
from workers.inference.ground import GroundedRequest, Spend
from workers.inference.lifetime import Lifetimes
from workers.inference.second_check import Judges


def answer_of(job: Job, pooled: Pooled) -> dict[str, object]:
    """Return the result's field with the answer; an empty dict for a job whose answer is a text.

    Ranks begin with the best document. Of documents with equal scores, the earlier one is first.
    """
    if job.kind is None:
        return {}
    scores = [row[0] for row in pooled.rows]
    answer: object = pooled.rows
    if job.kind is CLASSIFY:
        pairs = zip(pooled.labels, pooled.rows, strict=True)
        answer = [{"label": label, "probabilities": row} for label, row in pairs]
    elif job.kind is SCORE:
        answer = scores
    elif job.rerank is not None:
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
        answer = [{"index": index, "score": scores[index]} for index in order[: job.rerank.top_n]]
    return {job.kind.answer: answer}


LONG_ANSWER_CHARS = 10_000
_UNFINISHED = {
    "content_filter": "the engine's content filter held the answer back",
    "tool_calls": "the model called a tool instead of answering, and no call of the job's tools was found",
    "repetition": "the model repeated itself until the engine ended the answer",
}


_PASSED: Final = tuple(each.name for each in fields(Completion) if each.name in ResultChoice.model_fields)


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """A usable answer, with its citations."""

    completion: Completion
    answer: Answer
    reasoning: str | None

    @property
    def confidence(self) -> float | None:
        """The answer's confidence; sentences without a source lower the confidence."""
        return self.answer.lowered(self.completion.confidence) if self.completion.refusal is None else None

    @property
    def fields(self) -> dict[str, object]:
        """The members that the result and its choices share, by their names there.

        A field of the completion with the name of such a member passes as it is.
        """
        completion = self.completion
        passed = {name: getattr(completion, name) for name in _PASSED}
        return passed | {
            "text": self.answer.text,
            "reasoning": self.reasoning,
            "confidence": self.confidence,
            "citations": list(self.answer.citations),
            "answer": self.answer.support,
            "tool_calls": list(completion.tool_calls) or None,
        }

    def choice(self, index: int) -> ResultChoice:
        """Return the answer as one of a result's choices."""
        reason = {"finish_reason": "stop"} if self.completion.refusal is not None else {}
        return ResultChoice.model_validate({**self.fields, "index": index, **reason})


async def read_answers(
    completion: Completion, asked: GroundedRequest, job: Job, judge: Judge | None = None, seconds: float = JUDGE_SECONDS
) -> list[ReadAnswer | ResultError]:
    """Return the completion's answers, at most the job's `n`. A ResultError replaces an unusable answer.

    `judge` decides what the rules leave open in each answer, in at most `seconds`.
    """
    return [await _read(each, asked, job, judge, seconds) for each in (completion, *completion.further)[: job.n]]


def sources_of(answers: Sequence[ReadAnswer]) -> list[SourceDetails]:
    """Return the sources that the answers use, in the order of their first use."""
    return list({source.id: source for each in answers for source in each.answer.sources}.values())


def notes_on(read: Sequence[ReadAnswer | ResultError], wanted: int) -> list[str]:
    """Return the answers' notes, and notes about answers that are missing and fields that the engine does not take."""
    notes = [note for each in read if isinstance(each, ReadAnswer) for note in each.answer.notes]
    left_out = [
        f"answer {number} of {wanted} was left out: {each.message}"
        for number, each in enumerate(read, 1)
        if isinstance(each, ResultError)
    ]
    passed_over = [
        f"{name}: the engine has no such parameter; the answer was generated without it"
        for name in next((each.completion.left_out for each in read if isinstance(each, ReadAnswer)), ())
    ]
    few = [f"n: the engine gave {len(read)} of {wanted} answers"] if len(read) < wanted else []
    return list(dict.fromkeys((*notes, *left_out, *passed_over, *few)))


async def _read(
    completion: Completion, asked: GroundedRequest, job: Job, judge: Judge | None, seconds: float
) -> ReadAnswer | ResultError:
    if completion.refusal is not None:  # a refusal is whole: it is neither JSON nor supported by sources
        reasoning = completion.reasoning
        shown = await without_links(reasoning, asked) if reasoning is not None else None
        return ReadAnswer(completion, Answer("", (), ()), shown)
    ends = ("stop", "length", "tool_calls") if completion.tool_calls else ("stop", "length")
    if completion.finish_reason not in ends:
        why = _UNFINISHED.get(completion.finish_reason, "the engine ended the answer for an unknown reason")
        return ResultError(code="unfinished", message=why)
    try:
        answer = await _answer(completion, asked, job, judge, seconds)
        reasoning = completion.reasoning
        return ReadAnswer(completion, answer, await without_links(reasoning, asked) if reasoning is not None else None)
    except Unsupported as wrong:
        return ResultError(code="unsupported", message=str(wrong))
    except BadForm as wrong:
        return ResultError(code=wrong.code, message=str(wrong))


async def _answer(
    completion: Completion, asked: GroundedRequest, job: Job, judge: Judge | None, seconds: float
) -> Answer:
    """Return the answer with its citations. Raises BadForm and Unsupported.

    Threads read an answer with sources and a long one, so that the event loop can serve other jobs meanwhile.
    """
    is_long = len(completion.text) > LONG_ANSWER_CHARS
    if asked.wants_json and not completion.tool_calls:
        require_json(completion, job)
    form: list[str] = []
    if job.tools or job.response_format is not None:
        form = await asyncio.to_thread(require_form, completion, job) if is_long else require_form(completion, job)
    if completion.tool_calls:  # the model answers in a later job, which brings the results of the tools
        return Answer(await without_links(completion.text, asked), (), (), notes=tuple(form))
    if asked.evidence is None or asked.profile is None:
        return Answer(completion.text, (), (), notes=tuple(form))
    wanted = partial(Draft.of, completion.text, asked.evidence, asked.profile, is_json=asked.wants_json)
    draft = await asyncio.to_thread(wanted)
    verdicts, not_checked = await judged(draft.open, judge, seconds=seconds)
    answer = await asyncio.to_thread(draft.answer, verdicts, not_checked)
    return replace(answer, notes=(*answer.notes, *form)) if form else answer


async def without_links(text: str, asked: GroundedRequest) -> str:
    """Return a text without links that a page could have put into the text. Long texts are read in a thread."""
    if asked.evidence is None:
        return text
    read = partial(without_unknown_links, text, asked.evidence)
    return read() if len(text) <= LONG_ANSWER_CHARS else await asyncio.to_thread(read)


class Results:
    """Builds the results of one engine's jobs, and counts the tokens of each job."""

    def __init__(
        self, engine: Engine, lifetimes: Lifetimes, clock: Clock, metrics: Metrics, judges: Judges | None = None
    ) -> None:
        self._engine = engine
        self._judges = judges
        self._lifetimes = lifetimes
        self._clock = clock
        self._tokens = metrics.tokens.begin()

    async def answered(
        self,
        received: ReceivedJob,
        asked: GroundedRequest,
        completion: Completion,
        timings: Mapping[str, float] | None,
        spend: Spend = lambda _: None,
    ) -> Result:
        """Return the answer's result: a failure if the answer is unfinished, unsupported, or not the requested JSON.

        `spend` is called with the tokens of an engine that judges the answer.
        """
        self._tokens["prompt"].inc(completion.prompt_tokens)
        self._tokens["completion"].inc(completion.completion_tokens)
        notes = list(asked.evidence.notes) if asked.evidence is not None else []
        common: dict[str, object] = {
            "usage": _usage(completion),
            "finish_reason": completion.finish_reason,
            "timings": timings,
        }
        if completion.served_by is not None:
            common["engine"] = completion.served_by.engine
        if completion.pooled is not None:
            common |= answer_of(received.job, completion.pooled)
            return self._result(received, Outcome.SUCCEEDED, notes=notes, **common)
        job = received.job
        judge, seconds = (None, 0.0) if self._judges is None else self._judges.of(received, spend)
        read = await read_answers(completion, asked, job, judge, seconds)
        answers = [each for each in read if isinstance(each, ReadAnswer)]
        if not answers:
            if isinstance(error := read[0], ResultError) and error.code == InvalidOutput.code:
                text = await without_links(completion.text, asked)
                common |= {"text": text, "tool_calls": list(completion.tool_calls) or None}
            return self._result(received, Outcome.FAILED, error=read[0], notes=notes, **common)
        first, sources = answers[0], sources_of(answers)
        several = [each.choice(index) for index, each in enumerate(answers)] if job.n > 1 else None
        said = first.fields | ({"text": None} if first.completion.refusal is not None else {})
        if several is not None:
            said |= {"choices": several, "logprobs": None}
        return self._result(
            received,
            Outcome.SUCCEEDED,
            **common | said,
            sources=[source.id for source in sources],
            source_details=sources,
            notes=[*notes, *notes_on(read, job.n), *_without_logprobs(first, job)],
        )

    def plain(
        self, received: ReceivedJob, completion: Completion, timings: Mapping[str, float], created_at: int
    ) -> bytes | None:
        """Return the written result of a job that `is_plain`; None if the completion is no single whole text."""
        if not _is_plain(completion):
            return None
        self._tokens["prompt"].inc(completion.prompt_tokens)
        self._tokens["completion"].inc(completion.completion_tokens)
        served = completion.served_by
        return write_plain_result(
            received,
            completion.text,
            completion.confidence,
            completion.finish_reason,
            {name: value for name, value in _usage(completion).items() if value is not None},
            timings,
            received.job.model_id or next(iter(self._engine.models), self._engine.name),
            self._engine.name if served is None else served.engine,
            created_at,
        )

    def cut_off(self, received: ReceivedJob, completion: Completion | None = None) -> Result:
        """Return the result of a cancelled or expired job.

        The tokens of its unfinished completion are counted as wasted.
        """
        if completion is not None:
            self._tokens["wasted"].inc(completion.completion_tokens)
        if self._lifetimes.is_cancelled(received):
            outcome, message = Outcome.CANCELLED, "the job was cancelled before the answer was complete"
        elif received.deadline_ms < received.received_ms and received.place == received.origin:
            outcome, message = Outcome.EXPIRED, "the header `deadline` was past when the job's record was written"
        else:
            outcome, message = Outcome.EXPIRED, "ttl_seconds passed before the answer was complete"
        if completion is not None and completion.failure is not None:
            message, completion = f"{message}; the engine's last failure: {completion.failure}", None
        return self._result(
            received,
            outcome,
            usage=_usage(completion) if completion is not None else None,
            error=ResultError(code=outcome.value, message=message),
        )

    def failed(self, received: ReceivedJob, code: str, message: str) -> Result:
        """Return a failed result with this error code and message."""
        return self._result(received, Outcome.FAILED, error=ResultError(code=code, message=message))

    def _result(
        self, received: ReceivedJob, outcome: Outcome, *, notes: Sequence[str] = (), **fields: object
    ) -> Result:
        job = received.job
        if received.unknown is not None:
            notes = [*notes, str(received.unknown)]
        return Result.model_validate(
            {
                "job_id": received.job_id,
                "custom_id": job.custom_id,
                "model_id": _named(received) or next(iter(self._engine.models), self._engine.name),
                "outcome": outcome,
                "engine": self._engine.name,
                "metadata": job.metadata,
                "notes": list(notes),
                "screening": list(received.screening) or None,
                "created_at": int(self._clock.time()),
                **fields,
            }
        )


def _is_plain(completion: Completion) -> bool:
    """True for one whole text. Such an answer of a plain job has nothing to be judged."""
    return completion.finish_reason in ("stop", "length") and not (
        completion.tool_calls
        or completion.further
        or completion.reasoning
        or completion.pooled
        or completion.refusal
        or completion.left_out
    )


def _without_logprobs(first: ReadAnswer, job: Job) -> list[str]:
    is_missing = job.logprobs and first.completion.logprobs is None
    return ["logprobs: the engine gave no log-probabilities"] if is_missing else []


def _named(received: ReceivedJob) -> str | None:
    """Return the model or alias that the producer named, even if a rollout has put another model into the job."""
    return received.job.model_id if received.alias in (None, DEFAULT_ALIAS) else received.alias


def _usage(completion: Completion) -> dict[str, object]:
    """Return the members of the result's `Usage`, which are validated together with the result."""
    served = completion.served_by
    return {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "total_tokens": completion.prompt_tokens + completion.completion_tokens,
        "cached_tokens": completion.cached_tokens,
        "cost": served.cost if served is not None else None,
        "currency": served.currency if served is not None else None,
        "reasoning_tokens": completion.reasoning_tokens,
    }
