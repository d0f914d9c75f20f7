"""Accepts jobs: one transaction writes their rows and their records. The gateway answers 2xx after the commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from gateway.accept.idempotency import StoredAnswer, key_row, once
from gateway.accept.outbox import Header, outbox_row
from gateway.access import Principal
from gateway.access.quotas import QuotaExceeded, Work, has_quota, reserve, tokens_of, total_of
from gateway.access.tenant_settings import TenantSettings
from gateway.errors import NO_RETRY, ApiError, StoreAway
from gateway.store.dialects import insert, insert_new, write_rows
from gateway.store.engine import require_no_hold
from gateway.store.tables import idempotency, jobs, outbox
from schemas import topics as names
from schemas.job import DEFAULT_MAX_TOKENS
from schemas.topics import Lane, Topics
from telemetry.clock import Clock, SystemClock, unix_ms

QUEUED = "queued"
_CLOCK = SystemClock()


class JobExists(ApiError):  # noqa: N818 - it names what happened
    """The tenant already has a job with this id."""

    def __init__(self, job_id: str) -> None:
        message = f"The tenant already has a job with the id {job_id!r}; choose another id, or leave it out."
        super().__init__(409, "job_exists", message, "job_id", headers=NO_RETRY)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to accept, checked by the door."""

    job_id: str
    url: str
    """The API by which the job came in, such as `/v1/jobs`."""
    value: bytes
    """The job's record, which contains `job_id`."""
    headers: Sequence[Header] = ()
    """The record's headers, without `tenant`."""
    lane: Lane = "default"
    model_id: str | None = None
    custom_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    prompt_sha256: str | None = None
    request: bytes | None = None
    """JSON of the members of the request's body that later answers show again."""
    callback_url: str | None = None
    max_tokens: int = DEFAULT_MAX_TOKENS
    not_before_ms: int | None = None
    """The time before which the job does not start, in Unix milliseconds."""

    @property
    def work(self) -> Work:
        """The part of the tenant's quota that the job uses."""
        return Work(1, tokens_of(len(self.value), self.max_tokens))


def accept_jobs(
    connection: Connection,
    principal: Principal,
    new: Sequence[NewJob],
    topics: Topics,
    clock: Clock = _CLOCK,
    settings: TenantSettings | None = None,
) -> None:
    """Write jobs' rows into the store, and their records into the outbox. No id may occur twice in `new`.

    `settings` are the tenant's settings, which include its quota. Raises JobExists and QuotaExceeded, and StoreAway
    while no new work is accepted.
    """
    if not new:
        return
    require_no_hold(connection, new_work=True)
    now_ms = unix_ms(clock)
    counted = settings is not None and has_quota(settings)
    rows = [_job_row(principal, job, now_ms, counted=counted) for job in new]
    if len(new) == 1:
        if insert_new(connection, jobs, rows) == 0:
            raise JobExists(new[0].job_id)
    else:
        _insert_all(connection, principal.tenant, rows)
    write_rows(connection, insert(connection, outbox), [_outbox_row(principal.tenant, job, topics) for job in new])
    if settings is not None and counted:
        reserve(connection, principal.tenant, settings, total_of([job.work for job in new]))


@dataclass(frozen=True, slots=True)
class JobsRequest:
    """The change that accepts the jobs of one request, once for its `Idempotency-Key`. See `JointChange`."""

    principal: Principal
    key: str | None
    fingerprint: bytes
    new: Sequence[NewJob]
    answer: StoredAnswer
    topics: Topics
    clock: Clock = _CLOCK
    settings: TenantSettings | None = None

    def __call__(self, connection: Connection) -> StoredAnswer:
        """Accept the jobs, or return the answer to the first request. Raises as `accept_jobs` and `once` do."""

        def work() -> StoredAnswer:
            accept_jobs(connection, self.principal, self.new, self.topics, self.clock, self.settings)
            return self.answer

        tenant = self.principal.tenant
        return once(connection, tenant, self.key, self.fingerprint, work, self.clock, self.answer)

    @classmethod
    def together(cls, connection: Connection, changes: Sequence[JobsRequest]) -> list[StoredAnswer] | None:
        """Accept the jobs of several requests by one statement for each table. None if one of them is refused.

        A repeated key, a job's id that is taken, and a quota without room refuse a request.
        """
        keys, rows, records = [], [], []
        work: dict[str, tuple[TenantSettings, list[Work]]] = {}
        for one in changes:
            tenant, now_ms = one.principal.tenant, unix_ms(one.clock)
            if one.key is not None:
                keys.append(key_row(tenant, one.key, one.fingerprint, now_ms, one.answer))
            counted = one.settings is not None and has_quota(one.settings)
            if one.settings is not None and counted:
                work.setdefault(tenant, (one.settings, []))[1].extend(job.work for job in one.new)
            rows += [_job_row(one.principal, job, now_ms, counted=counted) for job in one.new]
            records += [_outbox_row(tenant, job, one.topics) for job in one.new]
        try:
            require_no_hold(connection, new_work=True)
            if keys and insert_new(connection, idempotency, keys) < len(keys):
                return None
            if insert_new(connection, jobs, rows) < len(rows):
                return None
            for tenant, (settings, wanted) in work.items():
                reserve(connection, tenant, settings, total_of(wanted))
        except (StoreAway, QuotaExceeded):
            return None
        write_rows(connection, insert(connection, outbox), records)
        return [one.answer for one in changes]


def _insert_all(connection: Connection, tenant: str, rows: list[dict[str, Any]]) -> None:
    """Insert all jobs or none. Raises JobExists for the first job whose id the tenant already has."""
    savepoint = connection.begin_nested()
    if insert_new(connection, jobs, rows) == len(rows):
        savepoint.commit()
        return
    savepoint.rollback()
    for row in rows:
        if connection.execute(
            select(jobs.c.job_id).where(jobs.c.tenant == tenant, jobs.c.job_id == row["job_id"])
        ).first():
            raise JobExists(row["job_id"])
    raise ValueError("a job's id occurs twice among the new jobs")


def _job_row(principal: Principal, job: NewJob, now_ms: int, *, counted: bool) -> dict[str, Any]:
    return {
        "tenant": principal.tenant,
        "job_id": job.job_id,
        "url": job.url,
        "custom_id": job.custom_id,
        "model_id": job.model_id,
        "status": QUEUED,
        "created_at": now_ms,
        "not_before": job.not_before_ms,
        "submitted_by": principal.credential,
        "reserved_tokens": job.work.tokens if counted else None,
        "prompt_sha256": job.prompt_sha256,
        "request": job.request,
        "metadata": dict(job.metadata),
    }


def _outbox_row(tenant: str, job: NewJob, topics: Topics) -> dict[str, Any]:
    headers = [(names.TENANT, tenant.encode()), *(each for each in job.headers if each[0] != names.TENANT)]
    topic = topics.lane(job.lane)
    return outbox_row(topic, job.job_id.encode(), job.value, headers, shard=tenant)
