"""Results of jobs that succeeded, failed, expired or were cancelled."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.codec import ReceivedJob
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.result import Result, ResultError, Timings, Usage
from schemas.rollout.facts import DEFAULT_ALIAS
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.base import Completion, Engine
from workers.inference.choices import ReadAnswer, notes_on, read_answers, sources_of
from workers.inference.ground import GroundedRequest
from workers.inference.lifetime import Lifetimes
from workers.inference.pooled_answers import answer_of
from workers.inference.second_check import SecondCheck
from workers.inference.side_request import Spend


class Results:
    """Builds the results of one engine's jobs, and counts the tokens of each job."""

    def __init__(
        self, engine: Engine, lifetimes: Lifetimes, clock: Clock, metrics: Metrics, check: SecondCheck | None = None
    ) -> None:
        self._engine = engine
        self._check = check
        self._lifetimes = lifetimes
        self._clock = clock
        self._tokens = metrics.tokens.begin()

    async def answered(
        self,
        received: ReceivedJob,
        asked: GroundedRequest,
        completion: Completion,
        timings: Timings,
        spend: Spend = lambda _: None,
    ) -> Result:
        """Return the answer's result: a failure if the answer is unfinished, unsupported, or not the requested JSON.

        `spend` is called with the tokens of checks of the answer.
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
        check = self._check.of(received, spend) if self._check is not None else None
        read = await read_answers(completion, asked, job, check)
        answers = [each for each in read if isinstance(each, ReadAnswer)]
        if not answers:
            return self._result(received, Outcome.FAILED, error=read[0], notes=notes, **common)
        first, sources = answers[0], sources_of(answers)
        several = [each.choice(index) for index, each in enumerate(answers)] if job.n > 1 else None
        return self._result(
            received,
            Outcome.SUCCEEDED,
            **common | {"finish_reason": first.completion.finish_reason},
            text=first.answer.text,
            reasoning=first.reasoning,
            choices=several,
            tool_calls=list(first.completion.tool_calls) or None,
            logprobs=first.completion.logprobs if several is None else None,
            confidence=first.confidence,
            sources=[source.id for source in sources],
            source_details=sources,
            citations=list(first.answer.citations),
            notes=[*notes, *notes_on(read, job.n), *_without_logprobs(first, job)],
        )

    def cut_off(self, received: ReceivedJob, completion: Completion | None = None) -> Result:
        """Return the result of a cancelled or expired job.

        The tokens of its unfinished completion are counted as wasted.
        """
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


def _without_logprobs(first: ReadAnswer, job: Job) -> list[str]:
    is_missing = job.logprobs and first.completion.logprobs is None
    return ["logprobs: the engine gave no log-probabilities"] if is_missing else []


def _named(received: ReceivedJob) -> str | None:
    """Return the model or alias that the producer named, even if a rollout has put another model into the job."""
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
