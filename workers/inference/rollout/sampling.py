"""The primary's side of a rollout: copies of jobs for the shadow worker, and reports of jobs during the canary.

A copy is a record of `model_requests.shadow`: a job with its grounded prompt and the primary's answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final, Self

from pydantic import Field, ValidationError

from schemas.bounded import WireModel
from schemas.codec import ReceivedJob
from schemas.job import DEFAULT_TENANT, Identifier, Job, Tenant
from schemas.kinds import KINDS
from schemas.outcome import Outcome
from schemas.result import MAX_RESULT_BYTES, Result, Support
from schemas.rollout.comparison import Comparison, ObservedAnswer, is_refusal, write_comparison
from schemas.rollout.facts import Rollout, RolloutId, Step, share_of
from schemas.topics import Topics
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.base import RequestRejected
from workers.enrichment.answering.profile import Profile
from workers.enrichment.evidence import Evidence, NumberedSource
from workers.inference.generate import Generator
from workers.inference.ground import GroundedRequest
from workers.inference.model_rules import BAD_FORMS
from workers.inference.results import Results
from workers.inference.rollout.difference import MAX_CHARS, Said, difference
from workers.inference.rollout.rollouts import CandidateAway, Rollouts
from workers.stage.record import Output

MAX_SAMPLE_BYTES: Final = MAX_RESULT_BYTES
NO_PROFILE: Final = "none"
_NUMBERS: Final = {kind.answer for kind in KINDS}
"""The fields of results that hold numbers computed from texts (embeddings, scores, ranks) instead of a text."""
_REFUSED: Final = "refused"
"""The code in place of a refusal, so that two refusals in different words are equal answers."""
_WITHOUT_SUPPORT: Final = (Support.UNSUPPORTED, Support.DANGLING)


class SampledSource(WireModel):
    """A source as the model saw it."""

    number: int = Field(ge=1, le=10_000)
    id: str
    url: str | None = None
    title: str | None = None
    passages: tuple[str, ...]


class SampledEvidence(WireModel):
    """The evidence in the prompt, by which the candidate's citations are checked."""

    sources: tuple[SampledSource, ...]
    question: str = ""
    conversation: str = ""

    @classmethod
    def of(cls, evidence: Evidence) -> Self:
        """Return the parts that the check of citations needs, without the fleet's secrets."""
        sources = [
            SampledSource(number=each.number, id=each.id, url=each.url, title=each.title, passages=each.passages)
            for each in evidence.sources
        ]
        return cls(sources=tuple(sources), question=evidence.question, conversation=evidence.conversation)

    def evidence(self) -> Evidence:
        """Return the evidence in the form that the check of citations takes."""
        sources = [NumberedSource(each.number, each.id, each.url, each.title, each.passages) for each in self.sources]
        return Evidence(tuple(sources), question=self.question, conversation=self.conversation)


class ShadowSample(WireModel):
    """A record's value."""

    rollout: RolloutId
    tenant: Tenant = DEFAULT_TENANT
    profile: Identifier = NO_PROFILE
    job: Job
    """The job with its id, the grounded prompt and the candidate's name.

    The job's temperature is 0, and its sources and callback are left out.
    """
    evidence: SampledEvidence | None = None
    primary: ObservedAnswer
    text: str | None = None
    """The primary's answer; absent if it failed."""
    code: str | None = Field(default=None, max_length=64)
    """The error's code if the primary failed, or `refused` if it refused to answer."""
    noise: float = Field(default=0.0, ge=0, le=1)
    """The difference of two answers of the primary to this job."""
    again: str | None = None
    """The primary's second answer if it differs from the first, so that the shadow worker can compare both by meaning.

    Absent if one of the answers is no text, or is longer than `MAX_CHARS` in `meaning`.
    """

    @property
    def candidate(self) -> str:
        """The model that has to answer the job."""
        return self.job.model_id or ""

    @property
    def job_id(self) -> str:
        """The job's id within its tenant: the producer's own, or the one derived from the record's place."""
        return self.job.job_id or "unknown"

    def asked(self, profile: Profile | None) -> GroundedRequest:
        """Return the sample's grounded request, with this profile."""
        messages = tuple(self.job.messages) if self.job.messages is not None else None
        evidence = self.evidence.evidence() if self.evidence is not None and profile is not None else None
        return GroundedRequest(self.job.prompt, messages, evidence, profile, self.job.response_format)


class InvalidSample(Exception):  # noqa: N818 - named after the record
    """A record that is no sample."""


def write_sample(sample: ShadowSample) -> bytes:
    """Write a record's value."""
    return sample.model_dump_json(exclude_none=True, exclude_defaults=True, by_alias=True).encode()


def read_sample(value: bytes | None) -> ShadowSample:
    """Read a record's value. Raises InvalidSample."""
    try:
        return ShadowSample.model_validate_json(value or b"")
    except ValidationError:
        raise InvalidSample("the value is not a sample of a rollout") from None


def said(result: Result) -> Said:
    """Return the answer of a result, for a comparison. Embeddings, scores and ranks become JSON."""
    numbers = result.model_dump_json(include=_NUMBERS, exclude_none=True) if result.text is None else "{}"
    text = numbers if numbers != "{}" else result.text
    if result.tool_calls is not None:
        calls = [[call.function.name, call.function.arguments] for call in result.tool_calls]
        text = json.dumps([text, calls], ensure_ascii=False)
    if result.refusal is not None:
        return Said(None, _REFUSED)
    return Said(text, result.error.code if result.error is not None else None)


def observed(result: Result, infer_ms: float) -> ObservedAnswer:
    """Return the facts of a result that the guards compare."""
    code = result.error.code if result.error is not None else None
    return ObservedAnswer(
        failed=result.outcome is not Outcome.SUCCEEDED,
        not_json=code in BAD_FORMS,
        refused=result.refusal is not None or (result.text is not None and is_refusal(result.text)),
        cut=result.finish_reason == "length",
        unsupported=code == "unsupported" or any(each.support in _WITHOUT_SUPPORT for each in result.citations),
        infer_ms=infer_ms,
        tokens=result.usage.completion_tokens if result.usage is not None else 0,
    )


WITHOUT_PROFILE: Final = Profile(name="without")
"""Has the bounds within which two answers to jobs without sources are treated as equal."""


class SampleRate:
    """Allows one event each `1 / per_second` seconds; after a pause, one second's events may come at once."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = clock.monotonic()

    def takes(self, per_second: float) -> bool:
        """True if one more event is allowed now. An allowed event is counted."""
        now = self._clock.monotonic()
        if self._next > now:
            return False
        self._next = max(self._next, now - 1.0) + 1 / per_second
        return True


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
            result = await self._results.answered(received, asked, completion, {})
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
            profile=again.asked.profile or WITHOUT_PROFILE,
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
