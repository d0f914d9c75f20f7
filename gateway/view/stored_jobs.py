"""Reads of a tenant's jobs: one by its id, and lists in a stable order.

An answered line of a batch is in a segment of its batch. Before its result, its state is read from the batch's row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Select, and_, or_, select

from gateway.errors import not_found
from gateway.store.dialects import storable
from gateway.store.tables import batch_segments, batches, jobs
from gateway.view.segments import Entry, entries_of, find_answers, having, indexes, is_answered

BATCHES: Final = "/v1/batches"
"""The `url` of an answered line of a batch."""
LISTED_BYTES: Final = 8 * 1024 * 1024
"""A page of jobs with their requests and results ends with the one that reaches this size."""
_LINE_ID = re.compile(r"(batch_[0-9a-f]{1,56})\.(0|[1-9][0-9]{0,8})")
"""The id of a batch's line: the batch's id, and the line's number, counted from 0."""
_ENDED_BATCHES = {"cancelled": "cancelled", "expired": "expired", "failed": "rejected"}
_NAMES = ("job_id", "status", "url", "custom_id", "model_id", "metadata", "submitted_by", "prompt_sha256")
_TIMES = {"created_at": "created_ms", "finished_at": "finished_ms", "not_before": "not_before_ms"}
_LISTED = (*(jobs.c[name] for name in _NAMES), *(jobs.c[name].label(label) for name, label in _TIMES.items()))
"""The columns of a listed job, named after the members of StoredJob."""
_WHOLE = (*_LISTED, jobs.c.result, jobs.c.request)


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A row of `jobs`, or a line of a batch."""

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
    """The API of jobs whose requests are stored."""


def line_of(job_id: str) -> tuple[str, int] | None:
    """Return the batch and the line of a job's id; None for a job that is no line of a batch."""
    found = _LINE_ID.fullmatch(job_id)
    return (found[1], int(found[2])) if found else None


def find_job(connection: Connection, tenant: str, job_id: str) -> StoredJob | None:
    """Return a job with its result; None if the tenant has no such job."""
    place = line_of(job_id)
    if place is not None and (line := _line(connection, tenant, *place)) is not None:
        return line
    this = jobs.c.tenant == tenant, jobs.c.job_id == job_id, jobs.c.deleted_at.is_(None)
    row = connection.execute(select(*_WHOLE).where(*this)).one_or_none()
    return None if row is None else StoredJob(**row._mapping)


def jobs_by_custom_id(connection: Connection, tenant: str, custom_id: str, limit: int) -> Sequence[StoredJob]:
    """Return a tenant's jobs and answered lines with this `custom_id`, without their results, newest first."""
    these = select(*_LISTED).where(jobs.c.tenant == tenant, jobs.c.custom_id == custom_id, jobs.c.deleted_at.is_(None))
    single = [
        StoredJob(**row._mapping) for row in connection.execute(these.order_by(jobs.c.created_at.desc()).limit(limit))
    ]
    lines: list[StoredJob] = []
    for row in indexes(connection, tenant, [having(connection, custom_id)], ascending=False):
        found = (_answered(row.batch_id, entry) for entry in entries_of(row.line_index))
        lines += (each for each in found if each.custom_id == custom_id and each.status)
        if len(lines) >= limit:
            break
    return sorted([*single, *lines], key=lambda job: job.created_ms, reverse=True)[:limit]


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
    """Return jobs, without their results, by time of creation, and True if there are more.

    Of equal times, jobs come before lines of batches, and each are ordered by the id. Raises ApiError (404) if the
    tenant has no job `after`.
    """
    place = None if after is None else _place_of(connection, tenant, after, "job")
    found: list[StoredJob] = []
    if wanted.batch_id is None:
        single = _single(_LISTED, tenant, wanted, place, ascending=ascending).limit(limit + 1)
        found += (StoredJob(**row._mapping) for row in connection.execute(single))
    found += _lines(connection, tenant, wanted, limit + 1, place, ascending=ascending)
    found.sort(key=lambda job: _Place.of(job), reverse=not ascending)
    return found[:limit], len(found) > limit


def list_stored(
    connection: Connection, tenant: str, wanted: JobFilter, limit: int, after: str | None, *, ascending: bool
) -> tuple[Sequence[StoredJob], bool]:
    """Return jobs with their requests and results, up to the one with which they have LISTED_BYTES.

    Also return True if there are more. See `list_jobs`.
    """
    place = None if after is None else _place_of(connection, tenant, after, "chat_completion")
    found: list[StoredJob] = []
    size = 0
    single = _single(_WHOLE, tenant, wanted, place, ascending=ascending).limit(limit + 1)
    with connection.execute(single, execution_options={"yield_per": 10}) as rows:
        for row in rows:
            if len(found) == limit or size >= LISTED_BYTES:
                return found, True
            found.append(StoredJob(**row._mapping))
            size += len(row.request) + len(row.result or b"")
    return found, False


class _Place(NamedTuple):
    """The place of a job in a list. Databases differ in the order of texts, so only they compare ids of single jobs."""

    at_ms: int
    batch_id: str
    """The batch of a line; "" for a single job."""
    line: int

    @classmethod
    def of(cls, job: StoredJob) -> _Place:
        return cls(job.created_ms, job.batch_id or "", job.line or 0)


def _single(
    columns: Sequence[Any], tenant: str, wanted: JobFilter, after: tuple[_Place, str] | None, *, ascending: bool
) -> Select[Any]:
    """Return the query for the jobs of a list that are no lines of batches."""
    conditions = [jobs.c.tenant == tenant, jobs.c.deleted_at.is_(None), *_conditions(wanted)]
    if after is not None:
        conditions.append(_beyond(*after, ascending=ascending))
    order = [jobs.c.created_at, jobs.c.job_id] if ascending else [jobs.c.created_at.desc(), jobs.c.job_id.desc()]
    return select(*columns).where(*conditions).order_by(*order)


def _lines(
    connection: Connection,
    tenant: str,
    wanted: JobFilter,
    limit: int,
    after: tuple[_Place, str] | None,
    *,
    ascending: bool,
) -> list[StoredJob]:
    """Return the answered lines of a list. Segments that may have some are read until none can have an earlier line."""
    conditions: list[Any] = [] if wanted.batch_id is None else [batch_segments.c.batch_id == wanted.batch_id]
    first, last = batch_segments.c.first_at, batch_segments.c.last_at
    conditions += [last > wanted.created_after_ms] if wanted.created_after_ms is not None else []
    conditions += [first < wanted.created_before_ms] if wanted.created_before_ms is not None else []
    texts = [(text,) for text in (wanted.status, wanted.model_id) if text is not None]
    conditions += [having(connection, *each) for each in (*texts, *wanted.metadata.items())]
    if after is not None:
        conditions.append(last >= after[0].at_ms if ascending else first <= after[0].at_ms)
    found: list[StoredJob] = []
    for row in indexes(connection, tenant, conditions, ascending=ascending):
        if len(found) >= limit:
            farthest = found[limit - 1].created_ms
            if row.first_at > farthest if ascending else row.last_at < farthest:
                break
        some = (_answered(row.batch_id, entry) for entry in entries_of(row.line_index) if entry.status is not None)
        found += (job for job in some if _is_wanted(job, wanted, after, ascending=ascending))
        found.sort(key=_Place.of, reverse=not ascending)
        del found[limit:]
    return found


def _is_wanted(job: StoredJob, wanted: JobFilter, after: tuple[_Place, str] | None, *, ascending: bool) -> bool:
    """True if an answered line fulfils the conditions of a list, and is beyond `after`."""
    place = _Place.of(job)
    return (
        (after is None or (place > after[0] if ascending else place < after[0]))
        and wanted.status in (None, job.status)
        and wanted.model_id in (None, job.model_id)
        and (wanted.created_after_ms is None or job.created_ms > wanted.created_after_ms)
        and (wanted.created_before_ms is None or job.created_ms < wanted.created_before_ms)
        and wanted.metadata.items() <= job.metadata.items()
    )


def _conditions(wanted: JobFilter) -> list[Any]:
    equal = {"status": wanted.status, "model_id": wanted.model_id}
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


def _place_of(connection: Connection, tenant: str, job_id: str, kind: str) -> tuple[_Place, str]:
    """Return the place of a listed job, and its id. Raises ApiError (404)."""
    line = line_of(job_id)
    answer = None if line is None else find_answers(connection, tenant, line[0], {line[1]}).get(line[1])
    if line is not None and answer is not None:
        return _Place(answer[0].at_ms, *line), job_id
    found = select(jobs.c.created_at).where(jobs.c.tenant == tenant, jobs.c.job_id == job_id)
    at = connection.execute(found).scalar()
    if at is None:
        raise not_found(kind, job_id)
    return _Place(at, "", 0), job_id


def _beyond(after: _Place, job_id: str, *, ascending: bool) -> Any:
    """Return the condition for rows beyond a place."""
    at = jobs.c.created_at
    if after.batch_id:
        return at > after.at_ms if ascending else at <= after.at_ms
    if ascending:
        return or_(at > after.at_ms, and_(at == after.at_ms, jobs.c.job_id > job_id))
    return or_(at < after.at_ms, and_(at == after.at_ms, jobs.c.job_id < job_id))


def _line(connection: Connection, tenant: str, batch_id: str, line: int) -> StoredJob | None:
    """Return a batch's line, with its result if it is answered; None if the tenant has no such line."""
    found = select(batches).where(batches.c.tenant == tenant, batches.c.id == batch_id)
    batch = connection.execute(found).one_or_none()
    if batch is None or line >= batch.total:
        return None
    answer = find_answers(connection, tenant, batch_id, {line}).get(line)
    if answer is None and is_answered(batch, line):
        return None  # its result was removed after `kept_days`, as a single job is
    if answer is not None:
        found_line = _answered(batch_id, answer[0])
        return replace(found_line, submitted_by=batch.submitted_by, created_ms=batch.created_at, result=answer[1])
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


def _answered(batch_id: str, entry: Entry) -> StoredJob:
    return StoredJob(
        job_id=f"{batch_id}.{entry.line}",
        status=entry.status or "",
        url=BATCHES,
        created_ms=entry.at_ms,
        finished_ms=entry.at_ms,
        batch_id=batch_id,
        line=entry.line,
        custom_id=entry.custom_id,
        model_id=entry.model_id,
        metadata=entry.metadata,
    )
