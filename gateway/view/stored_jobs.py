"""Reads of a tenant's jobs: one by its id, and lists in a stable order.

A batch's line gets a row when its result comes. Before the result, the line's state is read from the batch's row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, and_, or_, select

from gateway.errors import not_found
from gateway.store.dialects import storable
from gateway.store.tables import batches, jobs

_LINE_ID = re.compile(r"(batch_[0-9a-f]{1,56})\.(0|[1-9][0-9]{0,8})")
"""The id of a batch's line: the batch's id, and the line's number, counted from 0."""
_ENDED_BATCHES = {"cancelled": "cancelled", "expired": "expired", "failed": "rejected"}
_LISTED = [column for column in jobs.c if column.name not in ("result", "request")]


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A row of `jobs`, or the state of a batch's line that has no row yet."""

    job_id: str
    status: str
    """The state: `queued`, `cancelling` or an outcome."""
    url: str
    created_ms: int
    finished_ms: int | None = None
    batch_id: str | None = None
    line: int | None = None
    custom_id: str | None = None
    model_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    submitted_by: str | None = None
    prompt_sha256: str | None = None
    not_before_ms: int | None = None
    """The time before which the job does not start; None if it may start at once, and for a batch's line."""
    result: bytes | None = None
    """The result's record; None in most lists."""
    request: bytes | None = None
    """Members of the request's body; None in most lists, and where they are not stored."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Conditions that all jobs of a list fulfil; None sets no condition."""

    status: str | None = None
    batch_id: str | None = None
    model_id: str | None = None
    created_after_ms: int | None = None
    created_before_ms: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Keys and values that the job's metadata contains. A key has no quotation mark, since SQLite cannot escape it."""
    stored_url: str | None = None
    """The API of jobs whose requests are stored. Their list has requests and results."""


def line_of(job_id: str) -> tuple[str, int] | None:
    """Return the batch and the line of a job's id; None for a job that is no line of a batch."""
    found = _LINE_ID.fullmatch(job_id)
    return (found[1], int(found[2])) if found else None


def find_job(connection: Connection, tenant: str, job_id: str) -> StoredJob | None:
    """Return a job with its result; None if the tenant has no such job."""
    row = connection.execute(select(jobs).where(jobs.c.tenant == tenant, jobs.c.job_id == job_id)).one_or_none()
    place = line_of(job_id)
    if row is None:
        return _line(connection, tenant, *place) if place is not None else None
    if row.deleted_at is not None:
        return None
    found, line = _stored(row), _line(connection, tenant, *place) if place is not None else None
    # The row of an answered line is written from its result, which does not say who sent the batch.
    return found if line is None else replace(found, submitted_by=line.submitted_by, created_ms=line.created_ms)


def jobs_by_custom_id(connection: Connection, tenant: str, custom_id: str, limit: int) -> Sequence[StoredJob]:
    """Return a tenant's jobs and answered lines with this `custom_id`, without their results, newest first."""
    these = select(*_LISTED).where(jobs.c.tenant == tenant, jobs.c.custom_id == custom_id, jobs.c.deleted_at.is_(None))
    return [_stored(row) for row in connection.execute(these.order_by(jobs.c.created_at.desc()).limit(limit))]


def find_result(connection: Connection, tenant: str, job_id: str) -> bytes | None:
    """Return the record of a job's result; None if there is none yet."""
    this = select(jobs.c.result).where(jobs.c.tenant == tenant, jobs.c.job_id == job_id)
    result: bytes | None = connection.execute(this).scalar()
    return result


def delete_job(connection: Connection, tenant: str, job_id: str, now_ms: int) -> None:
    """Remove a finished job's answer and input, and so its events.

    The row stays, so that the job's id is not used again.
    """
    this = (jobs.c.tenant == tenant) & (jobs.c.job_id == job_id) & jobs.c.result.is_not(None)
    connection.execute(jobs.update().where(this).values(deleted_at=now_ms, result=None, request=None))


def relabel_job(connection: Connection, tenant: str, job_id: str, metadata: Mapping[str, str]) -> None:
    """Replace a job's metadata in the store. Its result keeps the metadata that the job had."""
    this = (jobs.c.tenant == tenant) & (jobs.c.job_id == job_id)
    connection.execute(jobs.update().where(this).values(metadata=dict(metadata)))


def list_jobs(
    connection: Connection, tenant: str, wanted: JobFilter, limit: int, after: str | None, *, ascending: bool
) -> tuple[Sequence[StoredJob], bool]:
    """Return jobs, without their results unless `stored_url` is set, by time of creation, and True if there are more.

    Equal times are ordered by the id. Raises ApiError (404) if the tenant has no job `after`.
    """
    conditions = [jobs.c.tenant == tenant, jobs.c.deleted_at.is_(None), *_conditions(wanted)]
    if after is not None:
        kind = "job" if wanted.stored_url is None else "chat_completion"
        conditions.append(_beyond(connection, tenant, after, kind, ascending=ascending))
    order = [jobs.c.created_at, jobs.c.job_id] if ascending else [jobs.c.created_at.desc(), jobs.c.job_id.desc()]
    columns = _LISTED if wanted.stored_url is None else list(jobs.c)
    rows = connection.execute(select(*columns).where(*conditions).order_by(*order).limit(limit + 1)).all()
    return [_stored(row) for row in rows[:limit]], len(rows) > limit


def _conditions(wanted: JobFilter) -> list[Any]:
    equal = {"status": wanted.status, "batch_id": wanted.batch_id, "model_id": wanted.model_id}
    found: list[Any] = [jobs.c[name] == value for name, value in equal.items() if value is not None]
    if wanted.created_after_ms is not None:
        found.append(jobs.c.created_at > wanted.created_after_ms)
    if wanted.created_before_ms is not None:
        found.append(jobs.c.created_at < wanted.created_before_ms)
    if wanted.stored_url is not None:
        found += [jobs.c.url == wanted.stored_url, jobs.c.request.is_not(None)]
    return found + [_labelled(key, value) for key, value in wanted.metadata.items()]


def _labelled(key: str, value: str) -> Any:
    """Return the condition that a job's metadata has this value; texts are compared as the databases store them."""
    return jobs.c.metadata[storable(key)].as_string() == storable(value)


def _beyond(connection: Connection, tenant: str, after: str, kind: str, *, ascending: bool) -> Any:
    """Return the condition for rows beyond the job `after`. Raises ApiError (404)."""
    found = select(jobs.c.created_at).where(jobs.c.tenant == tenant, jobs.c.job_id == after)
    at = connection.execute(found).scalar()
    if at is None:
        raise not_found(kind, after)
    if ascending:
        return or_(jobs.c.created_at > at, and_(jobs.c.created_at == at, jobs.c.job_id > after))
    return or_(jobs.c.created_at < at, and_(jobs.c.created_at == at, jobs.c.job_id < after))


def _stored(row: Any) -> StoredJob:
    return StoredJob(
        job_id=row.job_id,
        status=row.status,
        url=row.url,
        created_ms=row.created_at,
        finished_ms=row.finished_at,
        batch_id=row.batch_id,
        line=row.line,
        custom_id=row.custom_id,
        model_id=row.model_id,
        metadata=row.metadata,
        submitted_by=row.submitted_by,
        prompt_sha256=row.prompt_sha256,
        not_before_ms=row.not_before,
        result=getattr(row, "result", None),
        request=getattr(row, "request", None),
    )


def _line(connection: Connection, tenant: str, batch_id: str, line: int) -> StoredJob | None:
    """Return the state of a batch's line without a row; None if the tenant has no such line."""
    found = select(batches).where(batches.c.tenant == tenant, batches.c.id == batch_id)
    batch = connection.execute(found).one_or_none()
    if batch is None or line >= batch.total:
        return None
    status = "cancelling" if batch.status == "cancelling" else _ENDED_BATCHES.get(batch.status, "queued")
    return StoredJob(
        job_id=f"{batch_id}.{line}",
        status=status,
        url=batch.endpoint,
        created_ms=batch.created_at,
        batch_id=batch_id,
        line=line,
        submitted_by=batch.submitted_by,
    )
