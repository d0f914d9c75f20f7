"""The path of one job through a worker, from a lane's record to the job's result.

A job is a `JobContext` that walks through these steps, each a module of its own. Each step changes the context, or ends
the way with a `Finish`, from which `outputs` makes the job's records:

    admit       admission       bytes to a job; no job: rejected
    put off     admission       before its `not_before`: moved to a tier
    route       admission       another engine's job: moved to that engine's lane; no engine's: waits, then rejected
    attach      attachments     the question at `payload_url`; after the filter, the images
    screen      input_filter    the operator's rules
    ground      ground          sources to evidence before the question
    generate    generate        the engine's answer
    judge       results         citations, JSON and tools of the answer
    write       outputs         result and dead letter

A plain job, without payload, images, sources, rules and rollout, waits nowhere but in `generate`: one method takes it
through all steps in one piece. Exceptions are left for defects, and for the death of an engine. Two more modules serve
the stage: `pace` computes the number of jobs that the engine can use now, and `tenants` shares the window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from schemas.codec import InvalidJob, ReceivedJob
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.topics import Topics
from schemas.trust import TrustSecrets
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.egress import EgressPolicy
from workers.engines.base import Completion, Engine, EngineDied, RequestRejected
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import NothingFound
from workers.inference.admission import Admission
from workers.inference.attachments import Attachments
from workers.inference.context import Finish, JobContext, Missing
from workers.inference.engine_watch import EngineWatch
from workers.inference.generate import FAILURES, EngineKeepsFailing, Generator
from workers.inference.ground import GroundedRequest, Grounder, without_evidence
from workers.inference.input_filter import InputFilter
from workers.inference.job_identity import invalid_job
from workers.inference.lifetime import Cancellations, Lifetimes
from workers.inference.model_rules import Escalate, ModelRules, is_bad_form, sum_of
from workers.inference.observed import AnswerTimes, Phases
from workers.inference.outputs import Outputs
from workers.inference.pace import EnginePace
from workers.inference.results import Results
from workers.inference.rollout.rollouts import Absences, CandidateAway, Rollouts
from workers.inference.rollout.sampling import Sampled, Sampler
from workers.inference.routing import Registry
from workers.inference.second_check import Judges
from workers.inference.settings import WorkerSettings
from workers.inference.tenants import TenantSharing
from workers.stage.record import Failure, HandlerCrashed, Output, Record
from workers.system.deltas import DeltaPublisher, Speaker, channel_of

if TYPE_CHECKING:
    from workers.screening.screen import Screen  # for types only: workers without rules lack the extra `screening`

log = get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a worker that a handler works with."""

    engine: Engine
    enricher: Enricher
    registry: Registry
    callback_policy: EgressPolicy
    topics: Topics
    topic_ids: Mapping[str, str]
    """Maps the names of the stage's lanes to their topics' UUIDs."""
    settings: WorkerSettings
    clock: Clock
    metrics: Metrics
    trust: TrustSecrets | None = None
    """The secrets by one of which each job must be signed; None if jobs need no signature."""
    screen: Screen | None = None
    rules: ModelRules = field(default_factory=ModelRules)
    deltas: DeltaPublisher | None = None
    """The channel of answers while they are generated; None without a Redis for it."""


class InferenceHandler:
    """Implements the stage's `Handler`."""

    def __init__(self, parts: Parts) -> None:
        engine, enricher, registry, topics = parts.engine, parts.enricher, parts.registry, parts.topics
        settings, clock, metrics = parts.settings, parts.clock, parts.metrics
        self.cancellations = Cancellations(clock)
        """The cancelled jobs, kept up to date by the process from `job_control`."""
        self.engine_watch = EngineWatch(clock, lambda: engine.load().away)
        """The engine's health; the process runs the watch as a side task."""
        self.pace = EnginePace(engine.load, settings.waiting_target, clock)
        """The stage's back-pressure, which follows the engine's load."""
        self._lifetimes = Lifetimes(self.cancellations, clock)
        self.answer_times = AnswerTimes()
        """The times of this worker's answers, which the process announces."""
        self._clock = clock
        self._phases = Phases(clock, metrics)
        self._is_bare = parts.screen is None and not self._phases.is_traced
        """True if this worker, but for a model's rules, does nothing more with a plain job than to answer it."""
        self._filter = InputFilter(parts.screen, self._lifetimes, self.pace, metrics)
        self._rules = parts.rules
        self._deltas, self._topic_prefix = parts.deltas, topics.prefix
        self.rollouts = Rollouts(registry)
        """The rollouts of models, kept up to date by the process from `model_rollouts`."""
        self._admission = Admission(
            registry,
            parts.callback_policy,
            topics,
            parts.topic_ids,
            parts.trust,
            self.rollouts,
            settings.model_wait_seconds,
            clock,
        )
        self._grounder = Grounder(
            engine, enricher, self._lifetimes, self.pace, self._phases, clock, settings.enrich_ahead, metrics
        )
        self._attachments = Attachments(
            engine, enricher.payloads, enricher.images, self._lifetimes, self.pace, self._phases
        )
        self._absences = Absences(self.rollouts, clock)
        self._generator = Generator(engine, self.engine_watch, self._absences, self._lifetimes, metrics)
        judges = Judges(engine, enricher.settings, self._lifetimes, metrics, enricher.judge)
        self._results = Results(engine, self._lifetimes, clock, metrics, judges)
        self._outputs = Outputs(self._results, topics, clock, metrics)
        self._sampler = Sampler(self.rollouts, self._generator, self._results, topics, clock, metrics)
        self.sharing = TenantSharing(self._admission, self._outputs, topics, settings, metrics)
        """The stage's `Sharing`, by tenant."""

    async def handle(self, record: Record) -> Sequence[Output]:
        """End a job with exactly one result, or forward the job to the lane of the engine that has the job's model.

        Raises HandlerCrashed if the engine's process dies with the job in flight.
        """
        # an answer sets this to True, since only an answer shows that the engine is healthy
        record.shows_health = False
        record.spent = 0.0
        try:
            received = self._admission.admitted(record)
        except InvalidJob as invalid:
            return self._outputs.rejected(record, invalid)
        try:
            if self._is_bare and received.is_plain and self._is_own(record, received.job.model_id):
                return await self._answered_plainly(record, received)
            return await self._answered_in_steps(JobContext(record, received, received, size=len(record.value)))
        except EngineDied as died:
            raise HandlerCrashed from died

    async def _answered_plainly(self, record: Record, received: ReceivedJob) -> list[Output]:
        """Take a plain job through all steps in one piece, because only `generate` has something to do.

        Raises EngineDied.
        """
        clock, asked = self._clock, without_evidence(received)
        (_, queued_ms), began = self._phases.queued(received), clock.monotonic()
        try:
            _, completion = await self._generator.generated(received, asked)
        except EngineKeepsFailing as failing:
            job = JobContext(record, received, received)
            return self._outputs.of(job, self._end(job, *self._kept_failing(received, failing)))
        except RequestRejected as rejected:
            refused = invalid_job(received, rejected.field, rejected.reason)
            return self._outputs.rejected(record, refused, by_engine=True)
        if completion is None:
            return self._outputs.settled(received, self._results.cut_off(received))
        seconds = clock.monotonic() - began
        value = self._results.plain(received, completion, _timings(queued_ms, 0.0, seconds), int(clock.time()))
        if value is None:
            job = JobContext(record, received, received, queued_ms, infer_seconds=seconds)
            result = await self._judged(job, received, asked, completion)
            return self._outputs.of(job, self._end(job, result, None))
        record.shows_health = True
        self.sharing.answered(record, completion)
        self._count(record, received, seconds)
        return self._outputs.written(received, value, Outcome.SUCCEEDED)

    def _is_own(self, record: Record, model_id: str | None) -> bool:
        """Return whether this worker's engine answers a job with this model, without rules for the model."""
        return self._admission.is_own(record, model_id) and self._rules.has_none_for(model_id)

    async def _answered_in_steps(self, job: JobContext) -> Sequence[Output]:
        """Take any job through all steps, and free its places in memory. Raises EngineDied."""
        try:
            finish = await self._walked(job)
        except InvalidJob as invalid:
            finish = Finish(letter=invalid)
        finally:
            if job.held is not None:
                await job.held.aclose()
        if job.away is not None and not self._absences.has_failed(job.away.primary, job.away.at):
            # If the primary fails, too, the server that both share may be at fault, so the candidate is not blamed.
            job.reports += job.away.reports
        outputs = self._outputs.of(job, finish)
        return [*outputs, *job.reports] if job.reports else outputs

    async def _walked(self, job: JobContext) -> Finish:
        """Take the job through all steps.

        Raises EngineDied, and InvalidJob for a start that is too late and for a model that no engine has.

        The way begins again only for the primary of a rollout, if the candidate did not answer. The steps that are done
        by then are not repeated.
        """
        later = self._admission.put_off(job.record, job.received)
        if later is not None and not self._lifetimes.is_over(job.received):
            return Finish(moved=later)
        if not self._admission.is_served(job.received):
            await self._admission.wait_for_model(job, self._lifetimes)
            if self._lifetimes.is_over(job.received):
                return Finish(self._results.cut_off(job.received))
        while True:
            finish = self._admission.route(job) or await self._prepared(job) or await self._answered(job)
            if finish is not None:
                return finish

    async def _prepared(self, job: JobContext) -> Finish | None:
        """Make the job ready for the engine."""
        if job.queued_ms is None:
            job.received, job.queued_ms = self._phases.queued(job.received)
            if job.received.job.payload_url is not None:
                lacking = await self._attachments.payload(job)
                if isinstance(lacking, Missing):
                    # The result repeats the job's metadata, so the filter must redact the metadata first.
                    lacking = await self._filter.screen(job) or lacking
                if lacking is not None:
                    return self._ended(job, lacking)
            if (refused := await self._filter.screen(job)) is not None:
                return self._ended(job, refused)
            job.plain = job.received
            self._admission.warn(job.received.unknown)
        received = job.received = self._rules.with_defaults(job.received)
        if self._lifetimes.is_over(received):
            return Finish(self._results.cut_off(received))
        if received.job.messages is not None and received.job.images:
            fetched = await self._attachments.images(job)
            if fetched is not None:
                return self._ended(job, fetched)
        if received.job.sources is None:
            job.asked = without_evidence(job.received)
            return None
        found = await self._grounder.ground(job, received.job.sources, partial(self.sharing.spend, job.record))
        return self._ended(job, found) if found is not None else None

    async def _answered(self, job: JobContext) -> Finish | None:
        """Generate the job's answer and judge it. Return None if the rollout's primary has to answer the job."""
        if job.enrich_seconds is not None and job.away is None:
            self._phases.observe("enrich", job.enrich_seconds, job.received)
        sampled = Sampled()
        try:
            if job.received.alias is None or job.asked is None:
                result, failure = await self._in_form(job)
            else:
                async with self._sampler.beside(job.received, job.asked, sampled):
                    result, failure = await self._in_form(job)
                    sampled.result = result
            escalate = self._rules.after(job.received, result)
            if escalate is not None:
                result, failure = await self._escalated(escalate, job, result, failure)
        except CandidateAway as away:
            away.at = self._absences.now
            job.away, job.received = away, self._instead(job, away)
            return None
        except NothingFound as nothing:
            return self._ended(job, Missing("no_sources", str(nothing)))
        except RequestRejected as rejected:
            job.reports += sampled.outputs
            return Finish(letter=invalid_job(job.received, rejected.field, rejected.reason), by_engine=True)
        job.reports += sampled.outputs
        return self._end(job, result, failure)

    def _count(self, record: Record, received: ReceivedJob, infer_seconds: float, enrich_seconds: float = 0.0) -> None:
        """Count the times of a job that the engine has answered, or has not answered to its end."""
        self._phases.observe("infer", infer_seconds, received)
        self.pace.answered(enrich_seconds)
        if record.shows_health:
            self.answer_times.add(enrich_seconds + infer_seconds)

    def _end(self, job: JobContext, result: Result, failure: Failure | None) -> Finish:
        """Count a job's times, log why it was given up, and return its end."""
        if job.infer_seconds is not None:
            self._count(job.record, job.received, job.infer_seconds, job.enrich_seconds or 0.0)
        if failure is not None:
            log.warning(
                f"Gave up job {job.received.job_id}: {failure.message}.",
                action="job-given-up",
                job_id=job.received.job_id,
                why=failure.message,
            )
        return Finish(result, failure)

    def _instead(self, job: JobContext, away: CandidateAway) -> ReceivedJob:
        """Return the job for the primary: without the candidate's defaults, and with the images that were fetched."""
        plain = job.plain.job
        changes: dict[str, object] = {"model_id": away.primary}
        if plain.messages is not None:
            changes["messages"] = job.received.job.messages
        return replace(job.plain, job=plain.model_copy(update=changes))

    async def _in_form(self, job: JobContext) -> tuple[Result, Failure | None]:
        """Generate an answer, and once more if the first answer has not the form that the job asks for.

        If the registry has another model for such an answer, that model has the second try instead.

        Return the result, and the failure if the engine kept failing. Raises NothingFound, EngineDied, RequestRejected
        and CandidateAway.
        """
        first, failure = await self._tried(job, job.received)
        if failure is not None or not is_bad_form(first) or self._rules.after(job.received, first) is not None:
            return first, failure
        seed = ((job.received.job.seed or 0) + 1) % 2**63
        try:
            second, failing = await self._tried(job, _with_seed(job.received, seed))
        except RequestRejected:
            return first, None
        if failing is not None or second.outcome in (Outcome.EXPIRED, Outcome.CANCELLED):
            return second if failing is None else first, None
        why = first.error.message if first.error is not None else ""
        # A service without seeds draws one by itself, and the job did not ask for one.
        notes = [note for note in second.notes if job.received.job.seed is not None or not note.startswith("seed: ")]
        notes = [*notes, f"the model was asked once more, since the first answer was of no use: {why}"]
        return second.model_copy(update={"notes": notes, "usage": sum_of(first.usage, second.usage)}), None

    async def _tried(
        self, job: JobContext, received: ReceivedJob, model_id: str | None = None
    ) -> tuple[Result, Failure | None]:
        """Generate an answer with `model_id`, or else with the job's own model.

        Return the result, and the failure if the engine kept failing. Raises as `_in_form` does.
        """
        asked = job.asked
        assert asked is not None, "a job is grounded before it is generated"  # noqa: S101 - an invariant
        began = self._phases.now()
        speaker = self._speaker(received, model_id)
        try:
            with self._phases.span("infer", received):
                asked, completion = await self._generator.generated(received, asked, model_id, speaker)
        except EngineKeepsFailing as failing:
            return self._kept_failing(received, failing)
        finally:
            if speaker is not None:
                speaker.end()
        job.infer_seconds = (job.infer_seconds or 0.0) + self._phases.now() - began
        return await self._judged(job, received, asked, completion), None

    def _speaker(self, received: ReceivedJob, model_id: str | None) -> Speaker | None:
        """Return the speaker that publishes the answer's text while it grows.

        None if no client waits for it, or the text may be withdrawn: by a check of the answer, another model's second
        try, or a rollout whose candidate does not answer.
        """
        if self._deltas is None or not received.wants_deltas or not received.job.is_final_as_generated:
            return None
        if model_id is not None or received.alias is not None or self._rules.escalates(received.job.model_id):
            return None
        return self._deltas.speaker(channel_of(self._topic_prefix, received.tenant, received.job_id))

    def _kept_failing(self, received: ReceivedJob, failing: EngineKeepsFailing) -> tuple[Result, Failure]:
        failure = Failure("engine_error", str(failing), FAILURES)
        return self._results.failed(received, failure.code, failure.message), failure

    async def _judged(
        self, job: JobContext, received: ReceivedJob, asked: GroundedRequest, completion: Completion | None
    ) -> Result:
        """Return the result of a completion, and count the real tokens."""
        if completion is not None:
            self.sharing.answered(job.record, completion)
        if completion is None or completion.finish_reason == "abort":
            return self._results.cut_off(received, completion)
        job.record.shows_health = True
        timings = _timings(job.queued_ms or 0.0, job.enrich_ms, job.infer_seconds or 0.0)
        spend = partial(self.sharing.spend, job.record)
        return await self._results.answered(received, asked, completion, timings, spend)

    async def _escalated(
        self, escalate: Escalate, job: JobContext, first: Result, failure: Failure | None
    ) -> tuple[Result, Failure | None]:
        """Try the job once more with the other model.

        Return the result to keep, and the failure if both tries failed.
        """
        try:
            second, still_failing = await self._tried(job, job.received, escalate.to)
        except (NothingFound, RequestRejected):
            return escalate.refused(first), failure
        return escalate.chosen(first, second), still_failing if first.outcome is not Outcome.SUCCEEDED else None

    def _ended(self, job: JobContext, end: Finish | Missing) -> Finish:
        """Return the end of a job, also of one that lacks a part, or whose life ended before the part was fetched."""
        if isinstance(end, Finish):
            return end
        if self._lifetimes.is_over(job.received):
            return Finish(self._results.cut_off(job.received))
        return Finish(self._results.failed(job.received, end.code, end.reason))

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        """Return a failed result, and the record as a dead letter.

        The callback URL is not checked here: delivery checks it before each POST.
        """
        try:
            received = self._admission.read(record)
        except InvalidJob as invalid:
            return self._outputs.rejected(record, invalid)
        return self._outputs.given_up(record, received, failure)


def _with_seed(received: ReceivedJob, seed: int) -> ReceivedJob:
    return replace(received, job=received.job.model_copy(update={"seed": seed}))


def _timings(queued_ms: float, enrich_ms: float, infer_seconds: float) -> dict[str, float]:
    """Return the times of a result's `timings`."""
    return {
        "queued_ms": round(queued_ms, 3),
        "enrich_ms": round(enrich_ms, 3),
        "infer_ms": round(1000 * infer_seconds, 3),
    }
