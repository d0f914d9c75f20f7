"""Accepts jobs: one transaction writes their rows and their records. The gateway answers 2xx after the commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from gateway.accept.idempotency import StoredAnswer, StoredKey, key_row, stored_answers
from gateway.accept.outbox import Header, outbox_row, put_rows
from gateway.access import Principal
from gateway.access.quotas import Work, add_queued, has_quota, queued_work, require_room, tokens_of, total_of
from gateway.access.tenant_settings import TenantSettings
from gateway.errors import NO_RETRY, ApiError, StoreAway
from gateway.store.dialects import insert, rows_of, storable, write_rows
from gateway.store.engine import require_no_hold
from gateway.store.tables import idempotency, jobs
from gateway.store.writer import Refused
from schemas import topics as names
from schemas.job import DEFAULT_MAX_TOKENS
from schemas.topics import Lane, Topics
from telemetry.clock import Clock, SystemClock, unix_ms

QUEUED = "queued"
_CLOCK = SystemClock()


class JobExists(ApiError):  # noqa: N818 - it names what happened
    """The tenant already has a job with this id."""

    def __init__(self, job_id: str, place: str = "job_id") -> None:
        """`place` is the field's place in the request's body, such as `2.job_id`."""
        message = f"{place}: The tenant already has a job with the id {job_id!r}; choose another id, or leave it out."
        super().__init__(409, "job_exists", message, place, headers=NO_RETRY)


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


@dataclass(frozen=True, slots=True)
class JobsRequest:
    """The joint change (see `gateway.store.writer.Run`) that accepts one request, once for its `Idempotency-Key`."""

    principal: Principal
    key: str | None
    fingerprint: bytes
    new: Sequence[NewJob]
    """No id occurs twice among them."""
    answer: StoredAnswer
    topics: Topics
    clock: Clock = _CLOCK
    settings: TenantSettings | None = None
    """The tenant's settings, which include its quota."""

    def __call__(self, connection: Connection) -> StoredAnswer:
        """Accept the jobs, or return the answer to the first request with the key.

        Raises KeyReused, JobExists and QuotaExceeded, and StoreAway while no new work is accepted.
        """
        [found] = self.together(connection, [self])
        if isinstance(found, Refused):
            raise found.error
        return found

    @classmethod
    def together(cls, connection: Connection, changes: Sequence[JobsRequest]) -> list[StoredAnswer | Refused]:
        """Accept the jobs of several requests by one statement for each table.

        The requests are judged first, in their order. Nothing changes in between, because writers take turns.
        """
        group = _Group(connection, changes)
        outcomes = [group.outcome(one) for one in changes]
        group.write()
        return outcomes


class _Group:
    """The requests of one transaction, and what they meet: keys, job ids and reservations of earlier requests."""

    def __init__(self, connection: Connection, changes: Sequence[JobsRequest]) -> None:
        self._connection = connection
        names = [(one.principal.tenant, one.key) for one in changes if one.key is not None]
        self._keys = stored_answers(connection, names)
        ids = [(one.principal.tenant, job.job_id) for one in changes for job in one.new]
        self._ids = _known(connection, ids)
        self._queued: dict[str, Work] = {}
        self._new_keys: list[dict[str, Any]] = []
        self._jobs: list[dict[str, Any]] = []
        self._records: list[dict[str, Any]] = []
        self._wanted: dict[str, list[Work]] = {}

    def outcome(self, one: JobsRequest) -> StoredAnswer | Refused:
        """Take a request's rows and return its answer, or return a repeat's answer or the refusal."""
        tenant = one.principal.tenant
        stored = None if one.key is None else self._keys.get((tenant, one.key))
        try:
            if stored is not None:
                return stored.to(one.fingerprint)
            require_no_hold(self._connection, new_work=True)
            for index, job in enumerate(one.new):
                if (tenant, job.job_id) in self._ids:
                    raise JobExists(job.job_id, "job_id" if len(one.new) == 1 else f"{index}.job_id")
            counted = one.settings is not None and has_quota(one.settings)
            if one.settings is not None and counted:
                self._reserve(tenant, one.settings, total_of([job.work for job in one.new]))
        except (ApiError, StoreAway) as error:
            return Refused(error)
        now_ms = unix_ms(one.clock)
        if one.key is not None:
            self._keys[tenant, one.key] = StoredKey(one.fingerprint, one.answer)
            self._new_keys.append(key_row(tenant, one.key, one.fingerprint, now_ms, one.answer))
        self._ids |= {(tenant, job.job_id) for job in one.new}
        self._jobs += [_job_row(one.principal, job, now_ms, counted=counted) for job in one.new]
        self._records += [_outbox_row(tenant, job, one.topics) for job in one.new]
        return one.answer

    def write(self) -> None:
        """Write the rows that were taken."""
        for table, rows in ((idempotency, self._new_keys), (jobs, self._jobs)):
            if rows:
                write_rows(self._connection, insert(self._connection, table), rows)
        for tenant, works in self._wanted.items():
            add_queued(self._connection, tenant, total_of(works))
        if self._records:
            put_rows(self._connection, self._records)

    def _reserve(self, tenant: str, settings: TenantSettings, work: Work) -> None:
        """Raises QuotaExceeded."""
        queued = self._queued.get(tenant) or queued_work(self._connection, tenant)
        require_room(settings, queued, work)
        self._queued[tenant] = total_of([queued, work])
        self._wanted.setdefault(tenant, []).append(work)


def _known(connection: Connection, ids: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the pairs of a tenant and a job id that have a row."""
    if not ids:
        return set()
    storables = {(storable(tenant), storable(job_id)): (tenant, job_id) for tenant, job_id in ids}
    found = rows_of(connection, (jobs.c.tenant, jobs.c.job_id), list(storables))
    return {storables[row.tenant, row.job_id] for row in found}


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
