"""The primary's side of a rollout: copies of jobs for the shadow worker, and reports of jobs during the canary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace

from schemas.codec import ReceivedJob
from schemas.outcome import Outcome
from schemas.result import Result, Timings
from schemas.rollout.comparison import Comparison, ObservedAnswer, write_comparison
from schemas.rollout.facts import Rollout, Step, share_of
from schemas.topics import Topics
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.base import RequestRejected
from workers.inference.generate import Generator
from workers.inference.ground import GroundedRequest
from workers.inference.results import Results
from workers.inference.rollout.absence import CandidateAway
from workers.inference.rollout.difference import difference
from workers.inference.rollout.meaning import MAX_CHARS
from workers.inference.rollout.rollouts import Rollouts
from workers.inference.rollout.sample import (
    MAX_SAMPLE_BYTES,
    NO_PROFILE,
    SampledEvidence,
    ShadowSample,
    observed,
    said,
    thresholds_of,
    write_sample,
)
from workers.inference.rollout.sample_rate import SampleRate
from workers.stage.record import Output

LEAST_WAIT_SECONDS = 5.0
"""The result of a job waits for the second answer as long as the first answer took, but at least this long."""
_NOT_SAMPLED = nullcontext()
_GREEDY = {"temperature": 0.0, "top_p": None, "seed": None, "n": 1, "logprobs": False, "top_logprobs": None}
_COPIED = (Outcome.SUCCEEDED, Outcome.FAILED)
"""The outcomes of jobs that the candidate gets as copies."""
_REPORTED = (*_COPIED, Outcome.EXPIRED)
"""The outcomes that are reported during the canary. A model that answers too late lets its jobs expire."""


@dataclass(slots=True)
class Sampled:
    """One job in a `Sampler.beside` block: set `result` inside, and take `outputs` after it."""

    result: Result | None = None
    outputs: list[Output] = field(default_factory=list)


class Sampler:
    """Lets the primary answer a sample of jobs twice, and writes copies and reports beside the jobs' results."""

    def __init__(
        self,
        rollouts: Rollouts,
        generator: Generator,
        results: Results,
        topics: Topics,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._rollouts = rollouts
        self._generator = generator
        self._results = results
        self._topics = topics
        self._clock = clock
        self._rate = SampleRate(clock)
        self._counts = metrics.rollout_samples.begin()

    def beside(
        self, received: ReceivedJob, asked: GroundedRequest, sampled: Sampled
    ) -> AbstractAsyncContextManager[None]:
        """Answer a sampled job again while the block answers it. If the block raises, the other answers are cancelled.

        The result waits for the second answer for a bounded time, so that one transaction writes both.
        """
        return _NOT_SAMPLED if received.alias is None else self._beside(received, asked, sampled)

    @asynccontextmanager
    async def _beside(self, received: ReceivedJob, asked: GroundedRequest, sampled: Sampled) -> AsyncIterator[None]:
        rollout = self._rollouts.of(received)
        kind = self._kind(rollout, received) if rollout is not None else None
        if rollout is None or kind is None:
            yield
            return
        began, runs = self._clock.monotonic(), self._runs(received, asked) if kind is Step.SHADOW else []
        try:
            yield
            counted = _COPIED if kind is Step.SHADOW else _REPORTED
            if sampled.result is None or sampled.result.outcome not in counted:
                return
            if kind is Step.SHADOW:
                took = self._clock.monotonic() - began
                await asyncio.wait(runs, timeout=max(LEAST_WAIT_SECONDS, took))
                sampled.outputs = self._copied(rollout, received, runs, sampled.result)
            else:
                took_ms = sampled.result.timings.infer_ms if sampled.result.timings is not None else 0.0
                seen = observed(sampled.result, took_ms)
                sampled.outputs = [self._reported(rollout, received, asked, seen)]
        except RequestRejected:
            if kind is not Step.SHADOW:
                sampled.outputs = [self._reported(rollout, received, asked, ObservedAnswer(failed=True))]
            raise
        except CandidateAway as away:
            away.reports = [self._reported(rollout, received, asked, ObservedAnswer(failed=True))]
            raise
        finally:
            for run in runs:
                run.cancel()

    def _kind(self, rollout: Rollout, received: ReceivedJob) -> Step | None:
        """Return the current step if the job is sampled: copied in the shadow step, reported in a canary step."""
        step, order = rollout.step, rollout.order
        if step.is_over:
            return None
        by_candidate = received.job.model_id == order.candidate
        # The candidate's jobs are few at first, so a larger part of them is reported, up to all.
        part = min(1.0, order.sample / step.share) if by_candidate and step.share else order.sample
        if by_candidate and step is Step.SHADOW:
            return None
        if share_of(order.id, "sample", received.tenant, received.job_id) >= part:
            return None
        if not self._rate.takes(order.per_second):
            self._counts["skipped"].inc()
            return None
        return step

    def _runs(self, received: ReceivedJob, asked: GroundedRequest) -> list[asyncio.Task[_Run | None]]:
        """Start two greedy answers, or only one if the job is greedy, because its own answer is then the second."""
        job = received.job.model_copy(update=_GREEDY)
        greedy = replace(received, job=job)
        return [asyncio.create_task(self._run(greedy, asked)) for _ in range(1 if _is_greedy(received, asked) else 2)]

    async def _run(self, received: ReceivedJob, asked: GroundedRequest) -> _Run | None:
        """Return one more answer; None if the engine gives no answer."""
        began = self._clock.monotonic()
        try:
            asked, completion = await self._generator.generated(received, asked)
            if completion is None or completion.finish_reason == "abort":
                return None
            result = await self._results.answered(received, asked, completion, Timings())
        except Exception:  # the sample is dropped; the job itself reports the engine's error
            return None
        return _Run(received, asked, result, (self._clock.monotonic() - began) * 1000)

    def _copied(
        self, rollout: Rollout, received: ReceivedJob, runs: list[asyncio.Task[_Run | None]], own: Result
    ) -> list[Output]:
        """Return the copy for the shadow worker; no record if an answer is missing, or if the copy is too large."""
        done = [run.result() for run in runs if run.done() and not run.cancelled()]
        answers = [run for run in done if run is not None]
        if len(answers) < len(runs):
            self._counts["unanswered"].inc()
            return []
        again = answers[-1]
        if len(answers) == 1:
            reference, infer_ms = own, own.timings.infer_ms if own.timings is not None else again.ms
        else:
            reference, infer_ms = answers[0].result, answers[0].ms
        noise = difference(
            said(reference),
            said(again.result),
            is_json=again.asked.wants_json or received.job.kind is not None,
            thresholds=thresholds_of(again.asked.profile),
        )
        value = write_sample(_sample(rollout, again, reference, infer_ms, noise))
        if len(value) > MAX_SAMPLE_BYTES:
            self._counts["too_large"].inc()
            return []
        self._counts["copied"].inc()
        return [Output(self._topics.shadow, value, received.job_id.encode())]

    def _reported(
        self, rollout: Rollout, received: ReceivedJob, asked: GroundedRequest, seen: ObservedAnswer
    ) -> Output:
        """Return the report of a job during the canary."""
        by_candidate = received.job.model_id == rollout.order.candidate
        self._counts["reported"].inc()
        return comparison_output(
            self._topics,
            Comparison(
                rollout=rollout.order.id,
                step=rollout.step,
                job_id=received.job_id,
                profile=asked.profile.name if asked.profile is not None else NO_PROFILE,
                candidate=seen if by_candidate else None,
                primary=None if by_candidate else seen,
            ),
        )


@dataclass(frozen=True, slots=True)
class _Run:
    """One greedy answer, with the job and the request that it answers."""

    received: ReceivedJob
    asked: GroundedRequest
    result: Result
    ms: float


def comparison_output(topics: Topics, comparison: Comparison) -> Output:
    """Return the record of a comparison. The topic has one partition, so that all readers see the same order."""
    return Output(topics.comparisons, write_comparison(comparison), comparison.rollout.encode(), partition=0)


def _is_greedy(received: ReceivedJob, asked: GroundedRequest) -> bool:
    """True if the answer is deterministic: decoded greedily, or an embedding, score or rank."""
    temperature = received.job.temperature
    is_greedy = (temperature if temperature is not None else asked.temperature) == 0
    return is_greedy or received.job.kind is not None


def _sample(rollout: Rollout, run: _Run, reference: Result, infer_ms: float, noise: float) -> ShadowSample:
    asked, answer, again = run.asked, said(reference), said(run.result)
    is_short = max(len(answer.text or ""), len(again.text or "")) <= MAX_CHARS
    job = run.received.job.model_copy(
        update={
            "prompt": asked.prompt,
            "messages": list(asked.messages) if asked.messages is not None else None,
            "response_format": asked.response_format,
            "sources": None,
            "callback_url": None,
            "metadata": {},
            "model_id": rollout.order.candidate,
            "job_id": run.received.job_id,
        }
    )
    return ShadowSample(
        rollout=rollout.order.id,
        tenant=run.received.tenant,
        profile=asked.profile.name if asked.profile is not None else NO_PROFILE,
        job=job,
        evidence=SampledEvidence.of(asked.evidence) if asked.evidence is not None else None,
        primary=observed(reference, infer_ms),
        text=answer.text,
        code=answer.code,
        noise=noise,
        again=again.text if noise and is_short else None,
    )
