"""Results of jobs that succeeded, failed, expired or were cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from schemas.codec import ReceivedJob
from schemas.outcome import Outcome
from schemas.result import Result, ResultError, Timings, Usage
from schemas.rollout.facts import DEFAULT_ALIAS
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.base import Completion, Engine
from workers.enrichment.answering.answer import Answer, Unsupported, answered
from workers.enrichment.answering.links import without_unknown_links
from workers.inference.ground import GroundedRequest
from workers.inference.json_answers import NotJson, require_json
from workers.inference.lifetime import Lifetimes
from workers.inference.pooled_answers import answer_of

LONG_ANSWER_CHARS = 10_000
_UNFINISHED = {
    "content_filter": "the engine's content filter held the answer back",
    "tool_calls": "the model called a tool instead of answering, and jobs have no tools",
    "repetition": "the model repeated itself until the engine ended the answer",
}


class Results:
    """Builds the results of one engine's jobs, and counts the tokens of each job."""

    def __init__(self, engine: Engine, lifetimes: Lifetimes, clock: Clock, metrics: Metrics) -> None:
        self._engine = engine
        self._lifetimes = lifetimes
        self._clock = clock
        self._tokens = {kind: metrics.tokens.labels(kind) for kind in ("prompt", "completion", "wasted")}

    async def answered(
        self, received: ReceivedJob, asked: GroundedRequest, completion: Completion, timings: Timings
    ) -> Result:
        """Return the answer's result: a failure if the answer is unfinished, unsupported, or not the requested JSON."""
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
        if completion.finish_reason not in ("stop", "length"):
            why = _UNFINISHED.get(completion.finish_reason, "the engine ended the answer for an unknown reason")
            error = ResultError(code="unfinished", message=why)
            return self._result(received, Outcome.FAILED, error=error, notes=notes, **common)
        if completion.pooled is not None:
            common |= answer_of(received.job, completion.pooled)
            return self._result(received, Outcome.SUCCEEDED, notes=notes, **common)
        try:
            answer = await _answer(completion, asked, received.job.max_tokens)
            reasoning = await _reasoning(completion.reasoning, asked)
        except (NotJson, Unsupported) as wrong:
            code = "unsupported" if isinstance(wrong, Unsupported) else "not_json"
            error = ResultError(code=code, message=str(wrong))
            return self._result(received, Outcome.FAILED, error=error, notes=notes, **common)
        return self._result(
            received,
            Outcome.SUCCEEDED,
            text=answer.text,
            reasoning=reasoning,
            confidence=answer.lowered(completion.confidence),
            sources=[source.id for source in answer.sources],
            source_details=list(answer.sources),
            citations=list(answer.citations),
            notes=[*notes, *answer.notes],
            **common,
        )

    def cut_off(self, received: ReceivedJob, completion: Completion | None = None) -> Result:
        """Return the result of a cancelled or expired job. The tokens of its unfinished completion count as wasted."""
        if completion is not None:
            self._tokens["wasted"].inc(completion.completion_tokens)
        if self._lifetimes.is_cancelled(received):
            outcome, message = Outcome.CANCELLED, "the job was cancelled before the answer was complete"
        else:
            outcome, message = Outcome.EXPIRED, "ttl_seconds passed before the answer was complete"
        return self._result(
            received,
            outcome,
            usage=_usage(completion) if completion is not None else None,
            error=ResultError(code=outcome.value, message=message),
        )

    def failed(self, received: ReceivedJob, code: str, message: str) -> Result:
        """Return a failure with this error code and message."""
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
                "model_id": _named(received) or next(iter(self._engine.models), None),
                "outcome": outcome,
                "engine": self._engine.name,
                "metadata": job.metadata,
                "notes": list(notes),
                "screening": list(received.screening) or None,
                "created_at": int(self._clock.time()),
                **fields,
            }
        )


async def _answer(completion: Completion, asked: GroundedRequest, max_tokens: int) -> Answer:
    """Return the answer with its citations. Raises NotJson and Unsupported.

    A thread checks a long answer, so that the event loop can serve other jobs meanwhile.
    """
    if asked.wants_json:
        require_json(completion, max_tokens)
    if asked.evidence is None or asked.profile is None:
        return Answer(completion.text, (), ())
    read = partial(answered, completion.text, asked.evidence, asked.profile, is_json=asked.wants_json)
    return read() if len(completion.text) <= LONG_ANSWER_CHARS else await asyncio.to_thread(read)


async def _reasoning(reasoning: str | None, asked: GroundedRequest) -> str | None:
    """Return the reasoning without links that a page could have put into it, as `_answer` returns the answer."""
    if reasoning is None or asked.evidence is None:
        return reasoning
    read = partial(without_unknown_links, reasoning, asked.evidence)
    return read() if len(reasoning) <= LONG_ANSWER_CHARS else await asyncio.to_thread(read)


def _named(received: ReceivedJob) -> str | None:
    """Return the model or alias that the job names: a rollout may have put another model into the job."""
    return received.job.model_id if received.alias in (None, DEFAULT_ALIAS) else received.alias


def _usage(completion: Completion) -> Usage:
    return Usage(
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        total_tokens=completion.prompt_tokens + completion.completion_tokens,
        cached_tokens=completion.cached_tokens,
        cost=completion.served_by.cost if completion.served_by is not None else None,
        currency=completion.served_by.currency if completion.served_by is not None else None,
        reasoning_tokens=completion.reasoning_tokens,
    )
