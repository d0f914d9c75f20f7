"""The path of one job through a worker, from a lane's record to the job's result.

Each step is a module of its own:

    bytes ──admission──► ReceivedJob ──ground──► GroundedRequest ──generate──► Completion ──results──► Result
              │ no job, or another engine's          │ nothing found             │ cut off, given up
              ▼                                      ▼                           ▼
           outputs: rejected, forwarded           outputs: settled            outputs: settled, dead letter

`payloads` fetches the question of a job with a `payload_url`. `input_filter` applies the operator's rules, if there are
any, to an admitted job before its sources are read. `images` fetches the images of a job that has some, before its
sources are read. Two more modules serve the stage: `pace` computes the number of jobs that the engine can use now, and
`fairness` shares the window between tenants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from schemas.codec import InvalidJob, ReceivedJob
from schemas.outcome import Outcome
from schemas.result import Result, Timings
from schemas.topics import Topics
from schemas.trust import TrustSecrets
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.egress import EgressPolicy
from workers.engines.base import Engine, EngineDied, RequestRejected
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import NothingFound
from workers.inference.admission import Admission
from workers.inference.answer_times import AnswerTimes
from workers.inference.cancellations import Cancellations
from workers.inference.engine_watch import EngineWatch
from workers.inference.fairness import TenantSharing
from workers.inference.generate import FAILURES, EngineKeepsFailing, Generator
from workers.inference.ground import GroundedRequest, Grounder
from workers.inference.images import Images, NoImage
from workers.inference.input_filter import InputFilter, UnscreenedJob
from workers.inference.job_identity import invalid_job
from workers.inference.lifetime import Lifetimes
from workers.inference.model_rules import Escalate, ModelRules
from workers.inference.outputs import Outputs
from workers.inference.pace import EnginePace
from workers.inference.payloads import NoPayload, Payloads
from workers.inference.phases import Phases
from workers.inference.registry import Registry
from workers.inference.results import Results
from workers.inference.rollout.absence import Absences, CandidateAway
from workers.inference.rollout.rollouts import Rollouts
from workers.inference.rollout.sampling import Sampled, Sampler
from workers.inference.second_check import SecondCheck
from workers.inference.settings import WorkerSettings
from workers.inference.unknown_fields import UnknownFieldWarnings
from workers.inference.unserved import UnservedJobs, UnservedModel
from workers.stage.record import Failure, HandlerCrashed, Output, Record

if TYPE_CHECKING:
    from screening.screen import Screen  # for types only: workers without rules lack the extra `screening`

log = get_logger()


class InferenceHandler:
    """Implements the stage's `Handler`. `topic_ids` maps the names of the stage's lanes to their topics' UUIDs.

    If `trust` is not None, each job needs a signature by one of the secrets in it.
    """

    def __init__(
        self,
        engine: Engine,
        enricher: Enricher,
        registry: Registry,
        callback_policy: EgressPolicy,
        topics: Topics,
        topic_ids: Mapping[str, str],
        settings: WorkerSettings,
        clock: Clock,
        metrics: Metrics,
        trust: TrustSecrets | None = None,
        screen: Screen | None = None,
        rules: ModelRules | None = None,
    ) -> None:
        self.cancellations = Cancellations(clock)
        """The cancelled jobs, kept up to date by the process from `job_control`."""
        self.engine_watch = EngineWatch(clock, lambda: engine.load().away)
        """The engine's health; the process runs the watch as a side task."""
        self.pace = EnginePace(engine.load, settings.waiting_target, clock)
        """The stage's back-pressure, which follows the engine's load."""
        self._lifetimes = Lifetimes(self.cancellations, clock)
        self.answer_times = AnswerTimes()
        """The times of this worker's answers, which the process announces."""
        self._phases = Phases(clock, metrics)
        self._warnings = UnknownFieldWarnings()
        self._unserved = UnservedJobs(settings.unserved_seconds, clock)
        self._filter = InputFilter(screen, self._lifetimes, metrics)
        self._rules = rules or ModelRules()
        self.rollouts = Rollouts(registry)
        """The rollouts of models, kept up to date by the process from `model_rollouts`."""
        self._admission = Admission(registry, callback_policy, topics, topic_ids, trust, self.rollouts)
        self._grounder = Grounder(
            engine, enricher, self._lifetimes, self.pace, self._phases, clock, settings.enrich_ahead, metrics
        )
        self._payloads = Payloads(enricher.payloads, self._lifetimes, self.pace, self._phases)
        self._images = Images(engine, enricher.images, self._lifetimes, self.pace, self._phases)
        self._absences = Absences(self.rollouts, clock)
        self._generator = Generator(engine, self.engine_watch, self._absences, self._lifetimes, metrics)
        check = SecondCheck(engine, enricher.settings, self._lifetimes, metrics)
        self._results = Results(engine, self._lifetimes, clock, metrics, check)
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
            return await self._handled(record)
        except UnservedModel as unserved:
            received = unserved.received
            if not await self._is_served_later(record, received):
                return self._outputs.rejected(record, unserved.invalid)
        if self._lifetimes.is_over(received):
            return self._outputs.settled(received, self._results.cut_off(received))
        try:
            return await self._handled(record)
        except UnservedModel as unserved:
            return self._outputs.rejected(record, unserved.invalid)

    async def _is_served_later(self, record: Record, received: ReceivedJob) -> bool:
        """Wait until an engine serves the job's model or the job is over. Return False if the model stays unserved."""
        is_served, is_over = partial(self._admission.is_served, received), partial(self._lifetimes.is_over, received)
        return await self._unserved.served_later(record, is_served, is_over)

    async def _handled(self, record: Record) -> Sequence[Output]:
        """Handle one job, without waiting for its model. Raises UnservedModel, and HandlerCrashed as `handle` does."""
        try:
            received = self._admission.admitted(record)
            try:
                return await self._routed(record, received)
            except CandidateAway as away:
                began = self._absences.now
                outputs = await self._routed(record, away.instead(received))
                # If the primary fails, too, the server that both share may be at fault, so the candidate is not blamed.
                return outputs if self._absences.has_failed(away.primary, began) else [*outputs, *away.reports]
        except InvalidJob as invalid:
            return self._outputs.rejected(record, invalid)
        except UnscreenedJob as over:
            return self._outputs.settled(over.received, self._results.cut_off(over.received))

    async def _routed(self, record: Record, received: ReceivedJob) -> Sequence[Output]:
        """Forward or answer a job. Raises InvalidJob, UnscreenedJob, UnservedModel, CandidateAway, HandlerCrashed."""
        with self.pace.preparing():
            forwarded = self._admission.forwarded(record, received)
            if forwarded is not None:
                return [forwarded]
            received, queued_ms = self._phases.queued(received)
            if received.job.payload_url is None:
                received = await self._prepared(received, len(record.value or b""))
        if received.job.payload_url is not None:
            return await self._loaded(record, received, queued_ms)
        return await self._seen(record, received, queued_ms)

    async def _prepared(self, received: ReceivedJob, size: int) -> ReceivedJob:
        """Return the job with its model's defaults, and with the input filter's findings and redactions.

        `size` is the size of the job, or of its payload, in bytes. Raises InvalidJob, and UnscreenedJob for a job that
        is over before it is screened.
        """
        received = self._rules.with_defaults(received)
        self._warnings.warn(received.unknown)
        return await self._filter.screened(received, size)

    async def _loaded(self, record: Record, received: ReceivedJob, queued_ms: float) -> Sequence[Output]:
        """Fetch the job's payload, and answer the job. Raises InvalidJob and HandlerCrashed."""
        try:
            async with self._payloads.loaded(received) as loaded:
                with self.pace.preparing():
                    prepared = await self._prepared(loaded.received, loaded.size)
                return await self._seen(record, prepared, queued_ms, loaded.fetch_ms)
        except NoPayload as missing:
            # The result repeats the job's metadata, so the filter must redact the metadata first.
            received = await self._filter.screened(received, len(record.value or b""))
            return self._outputs.settled(received, self._without(received, "no_payload", missing))

    async def _seen(
        self, record: Record, received: ReceivedJob, queued_ms: float, fetch_ms: float = 0.0
    ) -> Sequence[Output]:
        """Fetch the job's images, if any, and answer the job. Raises InvalidJob and HandlerCrashed."""
        if self._lifetimes.is_over(received):
            return self._outputs.settled(received, self._results.cut_off(received))
        if not received.job.images:
            return await self._answered(record, received, queued_ms, fetch_ms)
        try:
            async with self._images.seen(received) as seen:
                return await self._answered(record, seen.received, queued_ms, fetch_ms + seen.fetch_ms)
        except NoImage as missing:
            return self._outputs.settled(received, self._without(received, "no_image", missing))

    async def _answered(
        self, record: Record, received: ReceivedJob, queued_ms: float, fetch_ms: float = 0.0
    ) -> Sequence[Output]:
        """Ground the job, generate its answer, and return its last records. Raises InvalidJob and HandlerCrashed."""
        sampled = Sampled()
        try:
            asked = await self._grounder.grounded(received, partial(self.sharing.spend, record))
            if fetch_ms:
                asked = replace(asked, enrich_ms=asked.enrich_ms + fetch_ms)
            async with self._sampler.beside(received, asked, sampled):
                result, failure = await self._tried(record, received, asked, queued_ms)
                sampled.result = result
            escalate = self._rules.after(received, result)
            if escalate is not None:
                result, failure = await self._escalated(escalate, record, received, asked, queued_ms, result, failure)
        except NothingFound as nothing:
            return self._outputs.settled(received, self._without(received, "no_sources", nothing))
        except RequestRejected as rejected:
            invalid = invalid_job(received, rejected.field, rejected.reason)
            return [*self._outputs.rejected(record, invalid, by_engine=True), *sampled.outputs]
        except EngineDied as died:
            raise HandlerCrashed from died
        if failure is None:
            return [*self._outputs.settled(received, result), *sampled.outputs]
        log.warning(
            f"Gave up job {received.job_id}: {failure.message}.",
            action="job-given-up",
            job_id=received.job_id,
            why=failure.message,
        )
        return [*self._outputs.given_up(record, received, failure), *sampled.outputs]

    async def _tried(
        self,
        record: Record,
        received: ReceivedJob,
        asked: GroundedRequest,
        queued_ms: float,
        model_id: str | None = None,
    ) -> tuple[Result, Failure | None]:
        """Generate an answer with `model_id`, or else with the job's own model.

        Return the result, and the failure if the engine kept failing. Raises NothingFound, EngineDied and
        RequestRejected.
        """
        try:
            with self._phases.timed("infer", received) as infer:
                asked, completion = await self._generator.generated(received, asked, model_id)
        except EngineKeepsFailing as failing:
            failure = Failure("engine_error", str(failing), FAILURES)
            return self._results.failed(received, failure.code, failure.message), failure
        self.pace.answered(asked.enrich_ms / 1000)
        if completion is not None:
            self.sharing.answered(record, completion)
        if completion is None or completion.finish_reason == "abort":
            return self._results.cut_off(received, completion), None
        record.shows_health = True
        self.answer_times.add(asked.enrich_ms / 1000 + infer.seconds)
        timings = Timings(
            queued_ms=round(queued_ms, 3), enrich_ms=round(asked.enrich_ms, 3), infer_ms=round(infer.ms, 3)
        )
        spend = partial(self.sharing.spend, record)
        return await self._results.answered(received, asked, completion, timings, spend), None

    async def _escalated(
        self,
        escalate: Escalate,
        record: Record,
        received: ReceivedJob,
        asked: GroundedRequest,
        queued_ms: float,
        first: Result,
        failure: Failure | None,
    ) -> tuple[Result, Failure | None]:
        """Try the job once more with the other model.

        Return the result to keep, and the failure if both tries failed.
        """
        try:
            second, still_failing = await self._tried(record, received, asked, queued_ms, escalate.to)
        except (NothingFound, RequestRejected):
            return escalate.refused(first), failure
        return escalate.chosen(first, second), still_failing if first.outcome is not Outcome.SUCCEEDED else None

    def _without(self, received: ReceivedJob, code: str, missing: NothingFound | NoImage | NoPayload) -> Result:
        """Return a failed result with this code, or a cancelled or expired one if the job ended before its fetch."""
        if self._lifetimes.is_over(received):
            return self._results.cut_off(received)
        return self._results.failed(received, code, str(missing))

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        """Return a failed result, and the record as a dead letter.

        The callback URL is not checked here: delivery checks it before each POST.
        """
        try:
            received = self._admission.read(record)
        except InvalidJob as invalid:
            return self._outputs.rejected(record, invalid)
        return self._outputs.given_up(record, received, failure)
