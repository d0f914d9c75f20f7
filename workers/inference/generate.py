"""From a grounded request to the engine's completion: tries while the engine is away, and an abort at the job's end."""

from __future__ import annotations

import asyncio
import itertools

from schemas.codec import ReceivedJob
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.engines.base import (
    Completion,
    Engine,
    EngineDied,
    EngineFailed,
    EngineLost,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
)
from workers.inference.engine_watch import EngineWatch
from workers.inference.ground import GroundedRequest, with_less_evidence
from workers.inference.lifetime import Lifetimes

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
FAILURES = 5
"""Failures at one job, while the engine answers others, that end the job. The pauses between them add up to 7.5 s."""
_ABORTED = "the engine aborted the request unasked"

log = get_logger()


class EngineKeepsFailing(Exception):  # noqa: N818 - it says what the engine does
    """The engine failed at a job `FAILURES` times while it answered others."""


class Generator:
    """Puts requests to the engine, and tells the `EngineWatch` how each of them went."""

    def __init__(self, engine: Engine, watch: EngineWatch, lifetimes: Lifetimes, metrics: Metrics) -> None:
        self._engine = engine
        self._watch = watch
        self._lifetimes = lifetimes
        self._wasted_tokens = metrics.tokens.labels("wasted")
        self._numbers = itertools.count()

    async def generated(
        self, received: ReceivedJob, asked: GroundedRequest
    ) -> tuple[GroundedRequest, Completion | None]:
        """The completion, and the request that it answers: one with less evidence where the prompt was too long.

        The completion is None where the engine was away until the job's end, and has the finish reason `abort` where
        the job's end cut it off. Raises NothingFound, EngineKeepsFailing, EngineDied and RequestRejected.
        """
        while True:
            try:
                return asked, await self._completion(received, asked)
            except PromptTooLong as too_long:
                asked = with_less_evidence(received, asked, too_long)

    async def _completion(self, received: ReceivedJob, asked: GroundedRequest) -> Completion | None:
        """Ask until the engine answers, or the job is cancelled or expires."""
        request = _request(received, asked, next(self._numbers))
        wait = FIRST_RETRY_SECONDS
        tries = _Tries(self._watch)
        abort = _Abort(self._engine, request.request_id)
        with self._lifetimes.at_cancellation(received, abort), self._watch.asking():
            while not self._lifetimes.is_over(received):
                remaining = self._lifetimes.remaining(received)
                cut_off = asyncio.get_running_loop().call_later(remaining, abort)
                number = self._watch.begin()
                try:
                    return await self._answer(request, number, abort)
                except EngineDied as died:
                    self._watch.failed(died)
                    raise
                except (EngineUnavailable, EngineLost) as away:
                    self._watch.failed(away)
                    if isinstance(away, EngineFailed):
                        self._wasted_tokens.inc(away.wasted_tokens)
                        tries.failed(number, away)
                    await asyncio.sleep(min(wait, remaining))
                    wait = min(2 * wait, LONGEST_RETRY_SECONDS)
                finally:
                    cut_off.cancel()
        return None

    async def _answer(self, request: GenerationRequest, number: int, abort: _Abort) -> Completion:
        """One try. Raises EngineError; EngineFailed too where the engine aborted a request that was still wanted."""
        completion = await self._engine.generate(request)
        if completion.finish_reason != "abort":  # an aborted request may never have reached the engine
            self._watch.answered(number)
        elif not abort.asked:
            raise EngineFailed(_ABORTED, wasted_tokens=completion.completion_tokens)
        return completion


class _Tries:
    """Counts the failures at one job that did not strike other jobs too.

    While no request is answered the engine is away, which jobs wait for, so nothing counts. A timeout counts only where
    a request was answered that began later: an engine that is merely slow answers the others first.
    """

    def __init__(self, watch: EngineWatch) -> None:
        self._watch = watch
        self._seen = watch.begun
        self._failures = 0

    def failed(self, number: int, failure: EngineFailed) -> None:
        """The job's request of this number failed. Raises EngineKeepsFailing."""
        if self._watch.answers_after(number if failure.took_too_long else self._seen):
            self._failures += 1
        self._seen = self._watch.begun
        if self._failures >= FAILURES:
            raise EngineKeepsFailing(f"the engine failed at it {FAILURES} times while it answered others: {failure}")


class _Abort:
    """Asks the engine to end one request, and remembers that it was asked."""

    def __init__(self, engine: Engine, request_id: str) -> None:
        self._engine = engine
        self._request_id = request_id
        self.asked = False

    def __call__(self) -> None:
        self.asked = True
        task = asyncio.ensure_future(self._engine.abort(self._request_id))
        task.add_done_callback(_report)


def _report(task: asyncio.Future[None]) -> None:
    """Log a failed abort. Its consequence, a request that fails, is reported by `generate`."""
    if not task.cancelled() and task.exception() is not None:
        log.warning(
            "An abort failed; leaving the request until the engine ends it.",
            action="abort-failed",
            error=type(task.exception()).__qualname__,
        )


def _request(received: ReceivedJob, asked: GroundedRequest, number: int) -> GenerationRequest:
    """The engine's request. Its id holds no text of the producer's, or one job's abort could end another's request.

    `number` tells two runs of one record apart: a cancelled run may still be ending when the record runs again.
    """
    job = received.job
    return GenerationRequest(
        request_id=f"{received.place.digest}-{number}",
        prompt=asked.prompt,
        messages=asked.messages,
        max_tokens=job.max_tokens,
        temperature=job.temperature,
        temperature_is_default="temperature" not in job.model_fields_set,
        top_p=job.top_p,
        stop=tuple(job.stop),
        model_id=job.model_id,
        context_window=job.context_window,
        seed=job.seed,
        priority=received.priority,
        response_format=asked.response_format,
        adapter=job.adapter,
        is_whole=asked.evidence is not None and bool(asked.evidence.sources),
    )
