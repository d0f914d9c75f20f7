"""The shadow worker's handler: the candidate answers a sampled job, and its answer is compared with the primary's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from schemas.codec import Origin, ReceivedJob
from schemas.rollout.comparison import MAX_TEXT_CHARS, Comparison, ObservedAnswer
from schemas.rollout.facts import Step
from schemas.topics import Topics
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.engines.base import Engine, EngineDied, PromptTooLong, RequestRejected
from workers.enrichment.answering.profile import Profile, Profiles, UnknownProfile
from workers.inference.engine_watch import EngineWatch
from workers.inference.generate import EngineKeepsFailing, Generator
from workers.inference.ground import GroundedRequest
from workers.inference.lifetime import Cancellations, Lifetimes
from workers.inference.pace import EnginePace
from workers.inference.results import LONG_ANSWER_CHARS, Results
from workers.inference.rollout.difference import Meaning, MeaningUnknown, Said, difference
from workers.inference.rollout.rollouts import Absences, Rollouts
from workers.inference.rollout.sampling import (
    NO_PROFILE,
    WITHOUT_PROFILE,
    InvalidSample,
    ShadowSample,
    comparison_output,
    observed,
    read_sample,
    said,
)
from workers.stage.record import Failure, HandlerCrashed, Output, Record

SAMPLE_SECONDS = 600.0
"""The time that the candidate has for one answer."""

log = get_logger()


@dataclass(frozen=True, slots=True)
class _Answer:
    said: Said
    seen: ObservedAnswer


class ShadowHandler:
    """Implements the stage's `Handler` for `model_requests.shadow`. `serves` tells whether the engine has a model.

    If `meaning` is given, texts that differ in their words are also compared by meaning.
    """

    def __init__(
        self,
        engine: Engine,
        profiles: Profiles,
        rollouts: Rollouts,
        serves: Callable[[str], bool],
        topics: Topics,
        clock: Clock,
        metrics: Metrics,
        meaning: Meaning | None = None,
    ) -> None:
        self.engine_watch = EngineWatch(clock)
        """The engine's health; the process runs the watch as a side task."""
        self.pace = EnginePace(engine.load, None, clock)
        """The stage's back-pressure, which follows the engine's load."""
        lifetimes = Lifetimes(Cancellations(clock), clock)
        self._generator = Generator(engine, self.engine_watch, Absences(rollouts, clock), lifetimes, metrics)
        self._results = Results(engine, lifetimes, clock, metrics)
        self._profiles = profiles
        self._rollouts = rollouts
        self._serves = serves
        self._topics = topics
        self._clock = clock
        self._counts = metrics.rollout_samples.begin()
        self._meaning = meaning
        self._foreign: set[str] = set()

    async def handle(self, record: Record) -> Sequence[Output]:
        """Return the comparison of a sample; nothing for a sample that cannot be read or whose rollout is over.

        Raises HandlerCrashed if the engine's process dies with the sample in flight.
        """
        record.shows_health = False
        try:
            sample = read_sample(record.value)
        except InvalidSample as invalid:
            self._counts["unreadable"].inc()
            log.warning("Skipping an unreadable sample.", action="rollout-sample-unreadable", problem=str(invalid))
            return []
        if not self._is_wanted(sample):
            self._counts["stale"].inc()
            return []
        profile = self._profile(sample.profile)
        asked = sample.asked(profile)
        try:
            answer = await self._answered(record, sample, asked)
        except EngineDied as died:
            raise HandlerCrashed from died
        return [await self._compared(sample, profile, asked, answer)] if answer is not None else []

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        """Return a comparison in which the candidate has failed.

        The stage calls this if the sample killed its worker, or if the handler has a defect.
        """
        try:
            sample = read_sample(record.value)
        except InvalidSample:
            return []
        answer = _Answer(Said(None, failure.code), ObservedAnswer(failed=True))
        return [self._output(sample, answer, 1.0, sample.noise)] if self._is_wanted(sample) else []

    def _is_wanted(self, sample: ShadowSample) -> bool:
        """True if the sample's rollout is in its shadow step, and this worker has the candidate."""
        rollout = self._rollouts.with_id(sample.rollout)
        if rollout is None or rollout.step is not Step.SHADOW or rollout.order.candidate != sample.candidate:
            return False
        if self._serves(sample.candidate):
            return True
        if sample.candidate not in self._foreign:
            self._foreign.add(sample.candidate)
            log.error(
                "This shadow worker does not serve the candidate of the running rollout; throwing its samples away.",
                action="rollout-candidate-not-served",
                candidate=sample.candidate,
            )
        return False

    def _profile(self, name: str) -> Profile | None:
        try:
            return self._profiles[name] if name != NO_PROFILE else None
        except UnknownProfile:
            return None  # this worker lacks the profile, so citations stay unchecked

    async def _answered(self, record: Record, sample: ShadowSample, asked: GroundedRequest) -> _Answer | None:
        """Return the candidate's answer; None if the end of this worker cuts the answer off. Raises EngineDied."""
        place, now = Origin(record.topic, record.partition, record.offset), self._clock.time()
        deadline_ms = round((now + SAMPLE_SECONDS) * 1000)
        identity = (sample.job_id, sample.tenant, "", place, place, deadline_ms, 0, None, round(now * 1000))
        received = ReceivedJob(sample.job, *identity)
        began = self._clock.monotonic()
        try:
            asked, completion = await self._generator.generated(received, asked)
        except (RequestRejected, PromptTooLong, EngineKeepsFailing) as failed:
            return _Answer(Said(None, type(failed).__name__), ObservedAnswer(failed=True))
        if completion is None or completion.finish_reason == "abort":
            return _Answer(Said(None, "expired"), ObservedAnswer(failed=True, infer_ms=SAMPLE_SECONDS * 1000))
        record.shows_health = True
        result = await self._results.answered(received, asked, completion, {})
        return _Answer(said(result), observed(result, (self._clock.monotonic() - began) * 1000))

    async def _compared(
        self, sample: ShadowSample, profile: Profile | None, asked: GroundedRequest, answer: _Answer
    ) -> Output:
        """Return the comparison. A thread compares long answers, so that the event loop can serve other samples."""
        is_json, bounds = asked.wants_json or sample.job.kind is not None, profile or WITHOUT_PROFILE

        def by_words() -> float:
            primary = Said(sample.text, sample.code)
            return difference(primary, answer.said, is_json=is_json, profile=bounds)

        is_long = len(sample.text or "") + len(answer.said.text or "") > LONG_ANSWER_CHARS
        differs, noise = await asyncio.to_thread(by_words) if is_long else by_words(), sample.noise
        if self._meaning is not None and not is_json:
            with suppress(MeaningUnknown):
                differs, noise = await self._by_meaning(self._meaning, sample, answer, differs, bounds.equal_meaning)
        return self._output(sample, answer, differs, noise)

    async def _by_meaning(
        self, meaning: Meaning, sample: ShadowSample, answer: _Answer, differs: float, least: float
    ) -> tuple[float, float]:
        """Return the difference and the noise, each 0 for texts with the same meaning. Raises MeaningUnknown.

        If the noise cannot be measured by meaning, both are measured by words. Noise by words is larger, and would hide
        real differences by meaning.
        """
        noise, text, other = sample.noise, sample.text, answer.said.text
        if text is None or (noise and sample.again is None):
            return differs, noise
        if noise and sample.again is not None and await meaning.is_same(text, sample.again, least):
            noise = 0.0
        if differs and other is not None and await meaning.is_same(text, other, least):
            self._counts["same_meaning"].inc()
            differs = 0.0
        return differs, noise

    def _output(self, sample: ShadowSample, answer: _Answer, differs: float, noise: float) -> Output:
        self._counts["compared"].inc()
        texts: dict[str, str | None] = {}
        if differs:
            texts["primary_text"] = _shown(Said(sample.text, sample.code))
            texts["candidate_text"] = _shown(answer.said)
        return comparison_output(
            self._topics,
            Comparison(
                rollout=sample.rollout,
                step=Step.SHADOW,
                job_id=sample.job_id,
                profile=sample.profile,
                primary=sample.primary,
                candidate=answer.seen,
                differs=differs,
                noise=noise,
                **texts,
            ),
        )


def _shown(answer: Said) -> str:
    """Return the answer's text, or its error's code, for the comparison's record."""
    return (answer.text if answer.text is not None else f"(no answer: {answer.code})")[:MAX_TEXT_CHARS]
