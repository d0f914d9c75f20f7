"""Generates an answer: tries again while the engine is away, and aborts when the job is cancelled or expires."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from contextlib import suppress

from schemas.affinity import prefix_of
from schemas.codec import ReceivedJob
from schemas.job import Job
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.engines.base import (
    Abort,
    Completion,
    Engine,
    EngineDied,
    EngineFailed,
    EngineLost,
    EngineUnavailable,
    GenerationRequest,
    OnDelta,
    PromptTooLong,
    request_for,
)
from workers.inference.engine_watch import EngineWatch
from workers.inference.ground import GroundedRequest, with_less_evidence
from workers.inference.lifetime import Lifetimes
from workers.inference.rollout.rollouts import Absences

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 3.0
"""Longest pause between two tries, so that jobs go on within seconds once the engine works again.

The engine bounds the requests to a server that is away, however many jobs try again.
"""
FAILURES = 5
"""Failures at one job after which the worker gives the job up. The engine counts a failure only while it works.

The pauses between the failures add up to 6.5 s.
"""

log = get_logger()


class EngineKeepsFailing(Exception):  # noqa: N818 - named after the engine's behaviour
    """The engine failed at one job `FAILURES` times while it answered other jobs."""


class Generator:
    """Sends requests to the engine, and reports each outcome to the `EngineWatch`."""

    def __init__(
        self, engine: Engine, watch: EngineWatch, absences: Absences, lifetimes: Lifetimes, metrics: Metrics
    ) -> None:
        self._engine = engine
        self._watch = watch
        self._absences = absences
        self._lifetimes = lifetimes
        self._wasted_tokens = metrics.tokens.labels("wasted")
        self._numbers = itertools.count()
        self._waiting: defaultdict[str | None, set[asyncio.Event]] = defaultdict(set)
        """For each model that is away, the events of the jobs that wait for its next answer."""

    async def generated(
        self,
        received: ReceivedJob,
        asked: GroundedRequest,
        model_id: str | None = None,
        on_delta: OnDelta | None = None,
    ) -> tuple[GroundedRequest, Completion | None]:
        """Return the request and its completion. If the prompt was too long, the returned request has less evidence.

        `model_id` replaces the job's own model. `on_delta` takes the answer's text while it grows.

        The finish reason is `abort` if the job's end cut the completion off, or if the engine was away until then:
        `failure` has the reason. The completion is None if the job was over before. If a cancellation cut the
        completion off and was taken back meanwhile, the answer is generated again. Raises NothingFound,
        EngineKeepsFailing, EngineDied, RequestRejected and CandidateAway.
        """
        request, life = self._request(received, asked, model_id), self._lifetimes.remaining(received)
        request.on_delta = on_delta
        wait, failures, last = FIRST_RETRY_SECONDS, 0, ""
        run = self._lifetimes.begin(received, request.abort.ask)
        self._watch.asking += 1
        try:
            while not self._lifetimes.is_over(received):
                abort = request.abort
                abort.is_asked = False
                try:
                    completion = await self._engine.generate(request)
                    # An aborted request may never have reached the engine, so it does not count as answered.
                    if completion.finish_reason != "abort":
                        self._answered(request.model_id)
                        return asked, completion
                    if self._lifetimes.is_over(received):
                        return asked, completion
                    self._wasted_tokens.inc(completion.completion_tokens)  # ask again: the cancellation was undone
                except PromptTooLong as too_long:
                    asked = with_less_evidence(received, asked, too_long)
                    request = self._request(received, asked, model_id)
                    run.stop = request.abort.ask
                except EngineDied as died:
                    self._watch.failed(died)
                    raise
                except (EngineUnavailable, EngineLost) as away:
                    last, is_counted = str(away), isinstance(away, EngineFailed)
                    failures += is_counted
                    left = self._failed(received, request.model_id, away, life)
                    if failures >= FAILURES:
                        raise EngineKeepsFailing(
                            f"the engine failed at the job {FAILURES} times while it answered others: {last}"
                        ) from away
                    # A job that may be to blame waits its whole pause: other jobs' answers say nothing about it.
                    waiting = set[asyncio.Event]() if is_counted else self._waiting[request.model_id]
                    await _pause(min(wait, left), abort, waiting)
                    wait = min(2 * wait, LONGEST_RETRY_SECONDS)
        finally:
            self._watch.asking -= 1
            self._lifetimes.end(run)
        return asked, Completion("", "abort", 0, 0, failure=last) if last else None

    def _request(self, received: ReceivedJob, asked: GroundedRequest, model_id: str | None) -> GenerationRequest:
        return _request(received, asked, next(self._numbers), model_id)

    def _failed(
        self, received: ReceivedJob, model_id: str | None, away: EngineUnavailable | EngineLost, life: float
    ) -> float:
        """Record a failed try; return the seconds that the job may still wait for the model. Raises CandidateAway."""
        self._watch.failed(away)
        if isinstance(away, EngineUnavailable):
            self._wasted_tokens.inc(away.wasted_tokens)
        return self._absences.failed(received, model_id, life)

    def _answered(self, model_id: str | None) -> None:
        """Note that a model has answered, and let the jobs that wait for its next answer go on."""
        self._watch.answered()
        self._absences.answered(model_id)
        if self._waiting:
            for waiting in self._waiting.pop(model_id, ()):
                waiting.set()


async def _pause(seconds: float, abort: Abort, waiting: set[asyncio.Event]) -> None:
    """Wait at most `seconds`, until the abort is asked for, or an answer sets the events that are `waiting`."""
    if abort.is_asked:
        return
    woken = asyncio.Event()
    abort.stop = woken.set
    waiting.add(woken)
    with suppress(TimeoutError):
        try:
            async with asyncio.timeout(seconds):
                await woken.wait()
        finally:
            waiting.discard(woken)


def _prefix_key(job: Job) -> bytes | None:
    if job.messages is None and job.sources is None:
        return None  # most jobs end here, which saves the time of copying their fields
    return prefix_of(job.model_dump(mode="json", include={"messages", "sources"}))


def _request(received: ReceivedJob, asked: GroundedRequest, number: int, model_id: str | None) -> GenerationRequest:
    """Return the engine's request for a job.

    The request's id contains no text from the producer; otherwise one job's abort could end another job's request.
    `number` tells two runs of one record apart: a cancelled run may still be ending when the record runs again.
    """
    job = received.job
    return request_for(
        job if asked.evidence is None else _grounded(job, asked),
        f"{received.webhook_id}-{number}",
        model_id=model_id or job.model_id,
        temperature_is_default=job.temperature is None,
        prefix_key=_prefix_key(job),
        is_whole=asked.evidence is not None and bool(asked.evidence.sources),
    )


def _grounded(job: Job, asked: GroundedRequest) -> Job:
    """Return the job with its evidence before the question, and with its profile's options."""
    changes: dict[str, object] = {
        "prompt": asked.prompt,
        "messages": asked.messages,
        "response_format": asked.response_format,
    }
    if job.temperature is None:
        changes["temperature"] = asked.temperature
    return job.model_copy(update=changes)
