"""Admission of jobs: read a record, check the tenant's signature and the job's callback URL, and find the job's engine.

A job for a model that no worker serves waits a little, since a new worker or alias may soon serve the model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import lru_cache, partial

from schemas import topics as names
from schemas.codec import InvalidJob, Origin, ReceivedJob, UntrustedJob, read_job
from schemas.job import LONGEST_TTL_SECONDS
from schemas.settings import SettingsRefused, TrustSettings
from schemas.topics import Topics
from schemas.trust import TrustSecrets, signature_of
from schemas.unknown import UnknownFields
from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.egress import EgressPolicy, EgressRefused, check_url
from workers.inference.context import Finish, JobContext
from workers.inference.job_identity import invalid_job
from workers.inference.lifetime import Lifetimes
from workers.inference.outputs import moved
from workers.inference.rollout.rollouts import Rollouts
from workers.inference.routing import Registry, UnknownModel
from workers.inference.settings import WorkerSettings
from workers.stage.later import put_off
from workers.stage.record import Output, Record, size_of

MAX_HEADER_BYTES = 64 * 1024
"""Limit on the bytes of a job's headers and key together.

The worker copies headers and key to a moved job and to a dead letter. Without the limit, headers that arrived
compressed could exceed the next topic's record limit.
"""
STAMP_BYTES = 2 * 1024
"""Room for the headers that a worker adds when it moves a job: the identity, the origin, the deadline and a count."""
LOOK_SECONDS = 0.5
MOST_WAITING = 64
"""Cap on the jobs that wait for their model at once.

Each waiting job has a place in the window, and unknown names must not take all places.
"""
CLOCKS_MS = 3_600_000
"""The time by which a job that starts later may exceed its bound, since clocks differ."""
_TOO_LATE = (
    "the job would end too late, since its record's timestamp lies in the future; correct the producer's clock, or "
    "choose an earlier time"
)
_CHECKED_URLS = 4096
_WARNED_OF = 1024
_BULK, _SPARE = ".batch", ".spare"

log = get_logger()


class Admission:
    """Reads the jobs in the lanes' records. `topic_ids` maps lanes to the topic UUIDs from which job ids are derived.

    Each job needs a signature by one of the secrets in `trust`; if `trust` is None, jobs need no signature. `rollouts`
    replace a job's alias by the model behind the alias.
    """

    def __init__(
        self,
        registry: Registry,
        callback_policy: EgressPolicy,
        topics: Topics,
        topic_ids: Mapping[str, str],
        trust: TrustSecrets | None,
        rollouts: Rollouts,
        model_wait_seconds: float,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._rollouts = rollouts
        self._trust = trust
        # Cache the results of checks, which depend on the URL's text alone. Uncached checks take a quarter of an echo
        # job's time.
        self._check_callback = lru_cache(maxsize=_CHECKED_URLS)(partial(check_url, policy=callback_policy))
        self._topics = topics
        self._topic_ids = topic_ids
        self._model_wait_seconds = model_wait_seconds
        self._clock = clock
        self._waiting = 0
        self._warned_of: set[tuple[str, ...]] = set()

    def route(self, job: JobContext) -> Finish | None:
        """End the way of a job for another engine's lane. Raises InvalidJob for a model that no engine has."""
        moved = self.forwarded(job.record, job.received)
        return Finish(moved=moved) if moved is not None else None

    def put_off(self, record: Record, received: ReceivedJob) -> Output | None:
        """Return the job's record in the tiers of jobs that start later; None if its `not_before` has come.

        The codec bounds the job's end by the record's timestamp, which the producer may set. So the same bounds are
        applied again from now on. Raises InvalidJob for a job that exceeds them.
        """
        if received.job.not_before is None:
            return None  # no clock is asked, since every job comes here
        now_ms = round(self._clock.time() * 1000)
        begins_ms = received.job.begins_ms(now_ms)
        if begins_ms == now_ms:
            return None
        has_deadline = record.header(names.DEADLINE) is not None
        most_ms = names.LANES_KEPT_MS if has_deadline else 1000 * LONGEST_TTL_SECONDS
        if received.deadline_ms - now_ms > most_ms + CLOCKS_MS:
            raise invalid_job(received, "not_before", _TOO_LATE)
        job = moved(record, received, record.topic, (names.LANE, record.topic.encode()))
        return put_off(job, begins_ms, begins_ms - now_ms, now_ms, self._topics)

    def admitted(self, record: Record) -> ReceivedJob:
        """Return the job in a record. Raises InvalidJob, also for a callback URL that the egress policy refuses."""
        received = self.read(record)
        if received.job.callback_url is not None:
            try:
                self._check_callback(received.job.callback_url)
            except EgressRefused as refused:
                raise invalid_job(received, "callback_url", str(refused), callback=False) from None
        return received

    def read(self, record: Record) -> ReceivedJob:
        """Return the job in a record, without the egress policy's check of its callback URL.

        Raises InvalidJob for a record that is no valid job, and UntrustedJob for a record without a required signature.
        """
        place = Origin(self._topic_ids.get(record.topic, record.topic), record.partition, record.offset)
        try:
            received = read_job(record.value, record.headers, place, record.timestamp_ms)
        except InvalidJob as invalid:
            require_signature(self._trust, record, invalid, place)
            raise
        if self._trust is not None:
            require_signature(self._trust, record, received, place)
        if record.unreadable is not None:
            raise invalid_job(received, "headers", record.unreadable)
        most = MAX_HEADER_BYTES + (STAMP_BYTES if record.header(names.JOB_ORIGIN) is not None else 0)
        if record.headers and size_of(record.headers) + len(record.key or b"") > most:
            raise invalid_job(received, "headers", f"are larger than {MAX_HEADER_BYTES} bytes, the key included")
        return self._rollouts.routed(received, record.header(names.FORWARDED)) if self._rollouts.are_any else received

    def is_served(self, received: ReceivedJob) -> bool:
        """True if an engine of this fleet has the job's model now."""
        return self._registry.knows(received.job.model_id)

    def is_own(self, record: Record, model_id: str | None) -> bool:
        """True if this worker's engine has the model of the job, and no other lane's worker has sent the job here."""
        return self._registry.serves_here(model_id) and record.header(names.FORWARDED) is None

    async def wait_for_model(self, job: JobContext, lifetimes: Lifetimes) -> None:
        """Wait until an engine serves the job's model, and read the job again, since rollouts may have changed.

        Return early if the job is over, if its record is `model_wait_seconds` old, or if too many jobs wait already.
        """
        until = min(job.record.timestamp_ms / 1000, self._clock.time()) + self._model_wait_seconds
        if self._waiting >= MOST_WAITING:
            return
        self._waiting += 1
        try:
            while (remaining := until - self._clock.time()) > 0:
                await asyncio.sleep(min(LOOK_SECONDS, remaining))
                if self.is_served(job.received):
                    job.received = job.plain = self.read(job.record)
                    return
                if lifetimes.is_over(job.received):
                    return
        finally:
            self._waiting -= 1

    def warn(self, unknown: UnknownFields | None) -> None:
        """Log the unknown fields' names, once for each set, since a producer repeats the same fields in all its jobs.

        None means no unknown fields. Each job's result names its unknown fields too.
        """
        if unknown is None or unknown.names in self._warned_of:
            return
        if len(self._warned_of) >= _WARNED_OF:
            self._warned_of.clear()
        self._warned_of.add(unknown.names)
        log.warning(
            "Jobs have unknown fields; ignoring the fields and naming them in each result.",
            action="fields-unknown",
            fields=list(unknown.names),
            count=unknown.count,
        )

    def forwarded(self, record: Record, received: ReceivedJob) -> Output | None:
        """Return the record that moves the job to another engine's lane; None if this worker's engine has the model.

        Raises InvalidJob for an unknown model.
        """
        try:
            where = self._registry.route(received.job.model_id, record.header(names.FORWARDED))
        except UnknownModel as unknown:
            raise invalid_job(received, "model_id", str(unknown)) from None
        if where is None:
            return None
        spare = is_spare_lane(record.topic)
        lane = self._topics.requests(where.lane, bulk=is_bulk_lane(record.topic), spare=spare)
        return moved(record, received, lane, (names.FORWARDED, str(where.times).encode()))


def is_bulk_lane(topic: str) -> bool:
    """True if the topic is a bulk lane, either the shared one or an engine's own."""
    return topic.endswith(_BULK)


def is_spare_lane(topic: str) -> bool:
    """True if the topic is a spare lane, either the shared one or an engine's own."""
    return topic.endswith(_SPARE)


def signing_keys(settings: WorkerSettings, trust: TrustSettings) -> TrustSecrets | None:
    """Return the secrets that jobs may be signed with; None if jobs need no signature.

    Raises SettingsRefused.
    """
    if settings.trust == "any":
        return None
    secrets = trust.secrets
    if secrets is None:
        raise SettingsRefused(
            "POSTBACK_WORKER__TRUST: with `signed`, POSTBACK_TRUST__SECRET_FILE must name the file of the secrets"
        )
    return secrets


def require_signature(
    secrets: TrustSecrets | None, record: Record, whose: ReceivedJob | InvalidJob, place: Origin
) -> None:
    """Raise UntrustedJob if the record's tenant needs a signature, but was not signed with any of the secrets.

    The signature covers a job id only if the writer chose the id; an id derived from the record's place is not signed.
    """
    if secrets is None:
        return
    signature = signature_of(record.headers)
    if not secrets.is_signed(whose.tenant, whose.job_id, record.value, signature):
        raise UntrustedJob(record.value, place)
