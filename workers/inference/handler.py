"""The handler of a worker: a job in, its result out.

A job enters in `handle` and goes down the page: read, routed, enriched, generated, written. Each phase has a type:
bytes → ReceivedJob → GroundedPrompt → Completion → Result.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from schemas import topics as names
from schemas.codec import InvalidJob, Origin, ReceivedJob, read_job, rejected_result, write_result
from schemas.control import JobKey
from schemas.job import DEFAULT_TENANT, Message, ResponseFormat, Sources
from schemas.problems import Problem
from schemas.result import MAX_RESULT_BYTES, Outcome, Result, ResultError, Timings, Usage
from schemas.topics import Topics
from schemas.unknown import UnknownFields
from telemetry.clock import Clock, Deadline
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from telemetry.traces import collecting, parse_traceparent, span
from workers.egress import EgressPolicy, EgressRefused, check_url
from workers.engines.base import (
    Completion,
    Engine,
    EngineDied,
    EngineFailed,
    EngineLost,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    RequestRejected,
)
from workers.engines.prompts import last_user_text
from workers.enrichment.answering.answer import Answer, Unsupported, answered
from workers.enrichment.answering.grounding import ground
from workers.enrichment.answering.profile import Profile, UnknownProfile
from workers.enrichment.choosing.tokens import room_for_sources
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Evidence, NothingFound
from workers.inference.cancellations import Cancellations
from workers.inference.engine_watch import EngineWatch
from workers.inference.job_identity import IDENTITY, identity_headers, job_letter, origin_header
from workers.inference.json_answers import NotJson, require_json
from workers.inference.pace import AnswerRate, EnrichmentLead
from workers.inference.registry import Forward, Registry, UnknownModel, times_in
from workers.inference.settings import WorkerSettings
from workers.stage.record import Failure, HandlerCrashed, Headers, Output, Record, size_of

FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 30.0
FAILURES = 5
"""Of the engine at one job, while it answers others, until the job is given up; the pauses between them are 7.5 s."""
AHEAD_SECONDS = 0.25
LEAD_MEMORY_SECONDS = 5.0
MAX_HEADER_BYTES = 64 * 1024
"""Of a job, with its key: they travel on with it, and a compressed record may have more of them than a topic takes."""
LONG_ANSWER_CHARS = 10_000
_ABORTED = "the engine ended the request, which was not asked for"
_UNFINISHED = {
    "content_filter": "the engine's content filter held the answer back",
    "tool_calls": "the model called a tool instead of answering, and jobs have no tools",
    "repetition": "the model repeated itself until the engine ended the answer",
}
CUT_NOTE = "passages were left out: the prompt was longer than the model's window"
_CHECKED_URLS = 4096
_TOLD_OF = 1024
_NO_SPAN = nullcontext()

log = get_logger()


@dataclass(frozen=True, slots=True)
class GroundedRequest:
    """What goes to the engine, and the evidence that was put before the question."""

    prompt: str | None
    messages: tuple[Message, ...] | None
    evidence: Evidence | None
    enrich_ms: float
    profile: Profile | None = None
    """There where there is evidence."""
    response_format: ResponseFormat | None = None
    """The job's own, or else its profile's."""

    @property
    def chars(self) -> int:
        """Of the prompt, or of all messages."""
        return len(self.prompt or "") + sum(len(message.text) for message in self.messages or ())


class EngineKeepsFailing(Exception):  # noqa: N818 - it says what the engine does
    """The engine failed at a job `FAILURES` times while it answered others."""


class _Tries:
    """How often the engine failed at one job that others were no worse off for.

    While nobody is answered, nothing is counted: that is an outage, which is waited for. One that took too long is
    counted only where a request was answered that began later, since an engine that is behind answers the others first.
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
    """Has the engine end one request when it is called. An engine may end one by itself, which is a failure of it."""

    def __init__(self, engine: Engine, request_id: str) -> None:
        self._engine = engine
        self._request_id = request_id
        self.asked = False

    def __call__(self) -> None:
        self.asked = True
        task = asyncio.ensure_future(self._engine.abort(self._request_id))
        task.add_done_callback(_report)


class InferenceHandler:
    """`Handler`, `Pace` and `Sharing` of the stage. `topic_ids` are the UUIDs of the topics that it reads."""

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
    ) -> None:
        self._engine = engine
        self._enricher = enricher
        self._registry = registry
        # What the text of a URL shows does not change, and judging it costs a quarter of a job that echo answers.
        self._check_callback = lru_cache(maxsize=_CHECKED_URLS)(partial(check_url, policy=callback_policy))
        self._topics = topics
        self._topic_ids = topic_ids
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._phases = {name: metrics.job_seconds.labels(name) for name in ("queued", "enrich", "infer")}
        self._outcomes = {outcome: metrics.jobs.labels(outcome) for outcome in Outcome}
        self._tokens = {kind: metrics.tokens.labels(kind) for kind in ("prompt", "completion", "wasted")}
        self.cancellations = Cancellations(clock)
        """To be fed from `job_control`."""
        self.engine_watch = EngineWatch(clock)
        """To run beside the stage."""
        self._rate = AnswerRate(clock, AHEAD_SECONDS)
        self._lead = EnrichmentLead(clock, AHEAD_SECONDS, LEAD_MEMORY_SECONDS)
        self._turns = asyncio.Semaphore(settings.enrich_ahead)
        self._preparing = 0
        self._enriching = 0
        self._traced = collecting()
        self._requests = itertools.count()
        self._told_of: set[tuple[str, ...]] = set()

    # -- pace: how the engine holds the stage back ---------------------------------------------------------------

    def room(self) -> int:
        """Keep the engine's waiting queue filled, and as many jobs in enrichment as come out when it has use for them.

        A fast engine is given as much as it lately answered in `AHEAD_SECONDS`, where that is more. While nothing waits
        in it, jobs in enrichment count for nothing: one that is ready shall not wait for those that wait for the web.
        """
        waiting = self._engine.load().waiting
        wanted = max(self._settings.waiting_target, self._rate.in_a_period()) - waiting - self._preparing
        lead = self._lead.jobs() - self._enriching
        return max(0, wanted + (lead if waiting else max(0, lead)))

    def due_ms(self, record: Record) -> int | None:
        """Every job is due at once."""
        return None

    def paces(self, topic: str) -> bool:
        """No lane's have."""
        return False

    # -- sharing: whose turn it is -------------------------------------------------------------------------------

    @property
    def later_share(self) -> float:
        """The bulk lane's."""
        return self._settings.bulk_share

    def party(self, headers: Headers | None) -> bytes:
        """The tenant, as the header says it: whether it may say so is found out when the job is read."""
        for name, value in reversed(headers or ()):
            if name == names.TENANT:
                return value or _NO_TENANT
        return _NO_TENANT

    def is_later(self, topic: str) -> bool:
        """Whether it is a bulk lane."""
        return topic.endswith(_BULK)

    def defer(self, record: Record) -> Sequence[Output]:
        """The job for the bulk lane, with identity and deadline. One that does not belong here goes its way now."""
        try:
            received = self._accepted(record)
            forward = self._route(received, record)
        except InvalidJob as invalid:
            return self._rejected(record, invalid)
        if forward is not None:
            return [forward]
        self._metrics.deferred.inc()
        times = times_in(record.header(names.DEFERRED)) + 1
        bulk = self._topics.requests(self._settings.lane, bulk=True)
        return [_moved(record, received, bulk, (names.DEFERRED, str(times).encode()))]

    # -- the way of a job ----------------------------------------------------------------------------------------

    async def handle(self, record: Record) -> Sequence[Output]:
        """Answer one job: it ends in exactly one result, or goes on to the lane of the engine that has its model."""
        record.shows_health = False  # until the engine has answered it
        self._preparing += 1
        preparing = True
        try:
            received = self._accepted(record)
            forward = self._route(received, record)
            if forward is not None:
                return [forward]
            queued_ms = max(0.0, self._clock.time() * 1000 - received.received_ms)
            self._phases["queued"].observe(queued_ms / 1000)
            if received.unknown is not None:
                self._tell_of(received.unknown)
            if self._unwanted(received):
                return self._settled(record, received, self._cut_off(received, None))
            if received.job.sources is not None:
                self._preparing -= 1
                preparing = False
            asked = await self._enrich(received)
            if preparing:
                self._preparing -= 1
                preparing = False
            return await self._generate(record, received, asked, queued_ms)
        except InvalidJob as invalid:
            return self._rejected(record, invalid)
        except NothingFound as nothing:
            if self._unwanted(received):  # it waited for the web until its time was up
                return self._settled(record, received, self._cut_off(received, None))
            return self._settled(record, received, self._failed(received, "no_sources", str(nothing)))
        finally:
            if preparing:
                self._preparing -= 1

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        """A failed result, and the record itself as a dead letter. Delivery judges the callback before it calls."""
        try:
            received = self._read(record)
        except InvalidJob as invalid:
            return self._rejected(record, invalid)
        return self._given_up(record, received, failure)

    def _given_up(self, record: Record, received: ReceivedJob, failure: Failure) -> Sequence[Output]:
        result = self._failed(received, failure.code, failure.message)
        letter = self._dead_letter(record, received, failure.code, failure.message, failure.attempts)
        return [*self._settled(record, received, result), letter]

    def _accepted(self, record: Record) -> ReceivedJob:
        """The job in a record. Raises InvalidJob, also for a callback that may not be called."""
        received = self._read(record)
        if received.job.callback_url is not None:
            try:
                self._check_callback(received.job.callback_url)
            except EgressRefused as refused:
                raise _invalid(received, "callback_url", str(refused), callback=False) from None
        return received

    def _read(self, record: Record) -> ReceivedJob:
        """The job in a record, its callback not judged. Raises InvalidJob."""
        origin = Origin(self._topic_ids.get(record.topic, record.topic), record.partition, record.offset)
        received = read_job(record.value, record.headers, origin, record.timestamp_ms)
        if record.unreadable is not None:
            raise _invalid(received, "headers", record.unreadable)
        if record.headers and size_of(record.headers) + len(record.key or b"") > MAX_HEADER_BYTES:
            raise _invalid(received, "headers", f"are larger than {MAX_HEADER_BYTES} bytes, the key included")
        return received

    def _route(self, received: ReceivedJob, record: Record) -> Output | None:
        """The record for another engine's lane, None where the job is ours. Raises InvalidJob for an unknown model."""
        try:
            where = self._registry.route(received.job.model_id, record.header(names.FORWARDED))
        except UnknownModel as unknown:
            raise _invalid(received, "model_id", str(unknown)) from None
        if not isinstance(where, Forward):
            return None
        lane = self._topics.requests(where.lane, bulk=self.is_later(record.topic))
        return _moved(record, received, lane, (names.FORWARDED, str(where.times).encode()))

    async def _enrich(self, received: ReceivedJob) -> GroundedRequest:
        job = received.job
        messages = tuple(job.messages) if job.messages is not None else None
        if job.sources is None:
            return GroundedRequest(job.prompt, messages, None, 0.0, response_format=job.response_format)
        profile = self._profile(received, job.sources.profile)
        started = self._clock.monotonic()
        self._enriching += 1
        try:
            question = last_user_text(job)
            sources = profile.applied(job.sources, question)
            room = room_for_sources(job, profile.instructions, self._engine.context_tokens)
            with self._span("enrich", received):
                evidence = await self._evidence(received, sources, question, room)
            evidence = replace(evidence, conversation="\n".join(message.text for message in messages or ()))
        finally:
            self._enriching -= 1
        took = self._clock.monotonic() - started
        self._phases["enrich"].observe(took)
        return _asked(received, evidence, profile, took * 1000)

    def _with_less(self, received: ReceivedJob, asked: GroundedRequest, too_long: PromptTooLong) -> GroundedRequest:
        """The same with less evidence, never with less of what is said of it. Raises NothingFound as `_enrich` does."""
        if asked.evidence is None or asked.profile is None or received.job.sources is None:
            raise too_long
        beyond = asked.chars * (1 - too_long.fits)
        evidence = asked.evidence.shortened(asked.evidence.chars - beyond)
        evidence = replace(evidence, notes=tuple(dict.fromkeys((*evidence.notes, CUT_NOTE))))
        wanted = asked.profile.applied(received.job.sources, evidence.question)
        if wanted.required and not evidence.sources:
            raise NothingFound(evidence.notes)
        return _asked(received, evidence, asked.profile, asked.enrich_ms)

    async def _evidence(self, received: ReceivedJob, sources: Sources, question: str, room: int | None) -> Evidence:
        """Cut off when the job is cancelled: it may wait in line for a search. Raises NothingFound, then too."""
        enriching = asyncio.ensure_future(self._enriched_in_turn(received, sources, question, room))
        with self.cancellations.told(_key(received), enriching.cancel):
            try:
                return await enriching
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # it is the worker that ends, not the job
                raise NothingFound(()) from None

    async def _enriched_in_turn(
        self, received: ReceivedJob, sources: Sources, question: str, room: int | None
    ) -> Evidence:
        """So many jobs at once, so that what is held in memory of pages is bounded. Raises NothingFound."""
        try:
            async with asyncio.timeout(max(0.0, self._remaining(received))):
                await self._turns.acquire()
        except TimeoutError:
            raise NothingFound(()) from None
        try:
            deadline = Deadline.after(self._clock, max(0.0, self._remaining(received)))
            return await self._enricher.enrich(
                sources, question, deadline=deadline, tenant=received.tenant, room_tokens=room
            )
        finally:
            self._turns.release()

    def _profile(self, received: ReceivedJob, name: str) -> Profile:
        """Raises InvalidJob where no profile has that name."""
        try:
            return self._enricher.profile(name)
        except UnknownProfile as unknown:
            raise _invalid(received, "sources.profile", str(unknown)) from None

    async def _generate(
        self, record: Record, received: ReceivedJob, asked: GroundedRequest, queued_ms: float
    ) -> Sequence[Output]:
        started = self._clock.monotonic()
        try:
            with self._span("infer", received):
                asked, completion = await self._asked_and_completed(received, asked)
        except RequestRejected as rejected:
            raise _invalid(received, rejected.field, rejected.reason) from None
        except EngineDied as died:
            raise HandlerCrashed from died
        except EngineKeepsFailing as failing:
            why = str(failing)
            log.warning(
                "The engine keeps failing at a job; it is given up.",
                action="job-given-up",
                job_id=received.job_id,
                why=why,
            )
            return self._given_up(record, received, Failure("engine_error", why, FAILURES))
        took = self._clock.monotonic() - started
        self._rate.answered()
        self._lead.answered(asked.enrich_ms / 1000)
        self._phases["infer"].observe(took)
        timings = Timings(
            queued_ms=round(queued_ms, 3), enrich_ms=round(asked.enrich_ms, 3), infer_ms=round(took * 1000, 3)
        )
        if completion is None or completion.finish_reason == "abort":
            return self._settled(record, received, self._cut_off(received, completion))
        record.shows_health = True
        return self._settled(record, received, await self._succeeded(received, asked, completion, timings))

    async def _asked_and_completed(
        self, received: ReceivedJob, asked: GroundedRequest
    ) -> tuple[GroundedRequest, Completion | None]:
        """The engine's answer, and to what: with less evidence where the prompt was too long. Raises NothingFound."""
        while True:
            try:
                return asked, await self._completion(received, asked)
            except PromptTooLong as too_long:
                asked = self._with_less(received, asked, too_long)

    async def _completion(self, received: ReceivedJob, asked: GroundedRequest) -> Completion | None:
        """The engine's answer, cut off when nobody wants it any more; None where the engine was away until then.

        Raises EngineKeepsFailing.
        """
        request = _request(received, asked, next(self._requests))
        wait = FIRST_RETRY_SECONDS
        tries = _Tries(self.engine_watch)
        abort = _Abort(self._engine, request.request_id)
        with self.cancellations.told(_key(received), abort), self.engine_watch.asking():
            while not self._unwanted(received):
                remaining = self._remaining(received)
                cut_off = asyncio.get_running_loop().call_later(remaining, abort)
                number = self.engine_watch.begin()
                try:
                    completion = await self._engine.generate(request)
                    if completion.finish_reason != "abort":  # which a request does too that waits for the engine
                        self.engine_watch.answered(number)
                    elif not abort.asked:
                        raise EngineFailed(_ABORTED, wasted_tokens=completion.completion_tokens)
                    return completion
                except EngineDied as died:
                    self.engine_watch.failed(died)
                    raise
                except (EngineUnavailable, EngineLost) as away:
                    self.engine_watch.failed(away)
                    if isinstance(away, EngineFailed):
                        self._tokens["wasted"].inc(away.wasted_tokens)
                        tries.failed(number, away)
                    await asyncio.sleep(min(wait, remaining))
                    wait = min(2 * wait, LONGEST_RETRY_SECONDS)
                finally:
                    cut_off.cancel()
        return None

    def _span(self, name: str, received: ReceivedJob) -> AbstractContextManager[object]:
        """One phase in the job's trace, where somebody collects spans."""
        if not self._traced:
            return _NO_SPAN
        return span(name, parse_traceparent(received.traceparent), {"job_id": received.job_id})

    def _unwanted(self, received: ReceivedJob) -> bool:
        """Whether it is cancelled, or its time is up."""
        return self.cancellations.holds(_key(received)) or self._remaining(received) <= 0

    def _remaining(self, received: ReceivedJob) -> float:
        return received.deadline_ms / 1000 - self._clock.time()

    # -- results -------------------------------------------------------------------------------------------------

    async def _succeeded(
        self, received: ReceivedJob, asked: GroundedRequest, completion: Completion, timings: Timings
    ) -> Result:
        """The answer, unless it is not whole, not the JSON that was asked for, or not borne out by its sources."""
        self._tokens["prompt"].inc(completion.prompt_tokens)
        self._tokens["completion"].inc(completion.completion_tokens)
        notes = list(asked.evidence.notes) if asked.evidence is not None else []
        common = {"usage": _usage(completion), "finish_reason": completion.finish_reason, "timings": timings}
        if completion.finish_reason not in ("stop", "length"):
            why = _UNFINISHED.get(completion.finish_reason, "the engine ended the answer for a reason not known here")
            error = ResultError(code="unfinished", message=why)
            return self._result(received, Outcome.FAILED, error=error, notes=notes, **common)
        try:
            answer = await _answer(completion, asked, received.job.max_tokens)
        except (NotJson, Unsupported) as wrong:
            code = "unsupported" if isinstance(wrong, Unsupported) else "not_json"
            error = ResultError(code=code, message=str(wrong))
            return self._result(received, Outcome.FAILED, error=error, notes=notes, **common)
        return self._result(
            received,
            Outcome.SUCCEEDED,
            text=answer.text,
            confidence=answer.lowered(completion.confidence),
            sources=[source.id for source in answer.sources],
            source_details=list(answer.sources),
            citations=list(answer.citations),
            notes=[*notes, *answer.notes],
            **common,
        )

    def _cut_off(self, received: ReceivedJob, completion: Completion | None) -> Result:
        """The end of a job that nobody wants any more, and what was generated of it for nothing."""
        if completion is not None:
            self._tokens["wasted"].inc(completion.completion_tokens)
        if self.cancellations.holds(_key(received)):
            outcome, message = Outcome.CANCELLED, "it was cancelled before the answer was complete"
        else:
            outcome, message = Outcome.EXPIRED, "ttl_seconds passed before the answer was complete"
        return self._result(
            received,
            outcome,
            usage=_usage(completion) if completion is not None else None,
            error=ResultError(code=outcome.value, message=message),
        )

    def _failed(self, received: ReceivedJob, code: str, message: str) -> Result:
        return self._result(received, Outcome.FAILED, error=ResultError(code=code, message=message))

    def _tell_of(self, unknown: UnknownFields) -> None:
        """Once for all jobs that have the same ones: a producer has them in each of its jobs."""
        if unknown.names in self._told_of:
            return
        if len(self._told_of) >= _TOLD_OF:
            self._told_of.clear()
        self._told_of.add(unknown.names)
        log.warning(
            "Jobs have unknown fields, which are ignored; their results name them.",
            action="fields-unknown",
            fields=list(unknown.names),
            count=unknown.count,
        )

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
                "model_id": job.model_id or next(iter(self._engine.models), None),
                "outcome": outcome,
                "engine": self._engine.name,
                "metadata": job.metadata,
                "notes": list(notes),
                "created_at": int(self._clock.time()),
                **fields,
            }
        )

    # -- outputs -------------------------------------------------------------------------------------------------

    def _settled(self, record: Record, received: ReceivedJob, result: Result) -> list[Output]:
        """The result as a record of `model_results`, beside which nothing else speaks of the job."""
        value = write_result(result)
        if len(value) > MAX_RESULT_BYTES:
            message = (
                f"the result has {len(value)} bytes, and {MAX_RESULT_BYTES} are allowed; lower max_tokens or metadata"
            )
            result = self._failed(received, "result_too_large", message)
            value = write_result(result)
        self._outcomes[result.outcome].inc()
        headers = identity_headers(received.tenant, received.job_id, received.webhook_id, received.traceparent)
        if received.job.callback_url is not None:
            headers.append((names.CALLBACK_URL, received.job.callback_url.encode()))
        return [Output(self._topics.results, value, received.job_id.encode(), headers)]

    def _rejected(self, record: Record, invalid: InvalidJob) -> list[Output]:
        """A `rejected` result that echoes nothing of the input, and the record as a dead letter."""
        self._outcomes[Outcome.REJECTED].inc()
        log.info(
            "A record is no job; it is rejected.",
            action="job-rejected",
            job_id=invalid.job_id,
            fields=[problem.field for problem in invalid.problems],
        )
        headers = identity_headers(invalid.tenant, invalid.job_id, invalid.webhook_id, invalid.traceparent)
        if invalid.callback_url is not None:
            headers.append((names.CALLBACK_URL, invalid.callback_url.encode()))
        value = write_result(rejected_result(invalid, int(self._clock.time())))
        result = Output(self._topics.results, value, invalid.job_id.encode(), headers)
        return [result, self._dead_letter(record, invalid, "rejected", str(invalid), 1)]

    def _dead_letter(
        self, record: Record, whose: ReceivedJob | InvalidJob, reason: str, detail: str, attempts: int
    ) -> Output:
        self._metrics.dead_letters.labels(reason).inc()
        return job_letter(self._topics.dead_letters, record, whose, reason, detail, attempts)


def _key(received: ReceivedJob) -> JobKey:
    return received.tenant, received.job_id


_STAMPS = IDENTITY | {names.DEADLINE, names.JOB_ORIGIN}
_NO_TENANT = DEFAULT_TENANT.encode()
_BULK = ".batch"


def _moved(record: Record, received: ReceivedJob, lane: str, why: tuple[str, bytes]) -> Output:
    """The record for another lane. What it got where it first stood, its identity and its deadline, goes with it."""
    carried = [(name, value) for name, value in record.headers or () if name not in _STAMPS and name != why[0]]
    identity = identity_headers(received.tenant, received.job_id, received.webhook_id, received.traceparent)
    stamps = [*identity, origin_header(received), (names.DEADLINE, str(received.deadline_ms).encode()), why]
    return Output(lane, record.value, record.key, carried + stamps, record.partition)


async def _answer(completion: Completion, asked: GroundedRequest, max_tokens: int) -> Answer:
    """A long one is read on a thread: the stage's loop has others to serve. Raises NotJson and Unsupported."""
    is_json = asked.response_format is not None and asked.response_format.type != "text"
    if is_json:
        require_json(completion, max_tokens)
    if asked.evidence is None or asked.profile is None:
        return Answer(completion.text, (), ())
    read = partial(answered, completion.text, asked.evidence, asked.profile, is_json=is_json)
    return read() if len(completion.text) <= LONG_ANSWER_CHARS else await asyncio.to_thread(read)


def _asked(received: ReceivedJob, evidence: Evidence, profile: Profile, enrich_ms: float) -> GroundedRequest:
    """The job's prompt or messages with this evidence before the question."""
    job = received.job
    asked = job.prompt if job.messages is None else tuple(job.messages)
    grounded = profile.instructed(ground(asked, evidence))
    form = job.response_format or profile.answer_format(len(evidence.sources))
    return GroundedRequest(grounded.prompt, grounded.messages, evidence, enrich_ms, profile, form)


def _request(received: ReceivedJob, asked: GroundedRequest, number: int) -> GenerationRequest:
    """The engine's request. Nothing that a producer writes is in its id, or one job's abort would end another's.

    `number` tells apart two runs of one record: a cancelled one may still be ending when the record runs again.
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


def _invalid(received: ReceivedJob, field: str, reason: str, *, callback: bool = True) -> InvalidJob:
    return InvalidJob(
        (Problem(field, reason),),
        job_id=received.job_id,
        tenant=received.tenant,
        webhook_id=received.webhook_id,
        origin=received.origin,
        custom_id=received.job.custom_id,
        callback_url=received.job.callback_url if callback else None,
        traceparent=received.traceparent,
    )


def _usage(completion: Completion) -> Usage:
    return Usage(
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        total_tokens=completion.prompt_tokens + completion.completion_tokens,
    )


def _report(task: asyncio.Future[None]) -> None:
    """An abort that failed is an engine's failure, which its `generate` reports; here it is only noted."""
    if not task.cancelled() and task.exception() is not None:
        log.warning(
            "An abort did not reach the engine.", action="abort-failed", error=type(task.exception()).__qualname__
        )
