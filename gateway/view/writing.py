"""Writes records of the fleet's topics into rows, in the transaction that moves the view's offsets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic_core import to_json
from sqlalchemy import Connection, case, func, null, select
from sqlalchemy.dialects.sqlite import Insert

from gateway.accept.cancelling import CANCELLING
from gateway.accept.events import NewEvent, write_events
from gateway.accept.jobs import QUEUED
from gateway.access.quotas import Answered, release_answered
from gateway.store.dialects import insert, insert_of, pair_in, storable, write_rows
from gateway.store.tables import job_attempts, jobs
from gateway.view.records import AttemptRecord, ResultRecord
from gateway.view.segments import Batch, Line, batches_of, write_segments
from gateway.view.stored_events import LINES
from gateway.view.stored_jobs import BATCHES, line_of
from schemas.event import event_type
from schemas.result import Result


class StoredResult(NamedTuple):
    """A result of `model_results` whose row the view has written in the present transaction."""

    tenant: str
    job_id: str
    batch_id: str | None
    """The tenant's batch whose line the job is; None for a job that is no line."""
    line: int | None
    """The line in the batch's input, from 0."""
    url: str
    """The API by which the job came in; `kafka` for a job that the gateway did not accept."""
    result: Result
    value: bytes
    """The result's record."""
    webhook_id: str | None
    at_ms: int
    """The record's timestamp, Unix milliseconds."""
    has_callback: bool
    """True if delivery sends the result to a callback of the job's own."""
    first: bool
    """True for a job's first result. A job that an operator put back gets a further result."""


OnResults = Callable[[Connection, Sequence[StoredResult]], None]
"""A function that the view calls with results, in their order, in the transaction that writes their rows.

The function may run more than once for a transaction, and must have no effect but its rows. If the function raises, the
view calls it for each result alone; a result that fails again is written without the call.
"""


KAFKA = "kafka"
"""The `url` of a job that the gateway did not accept."""
_UNFINISHED = (QUEUED, CANCELLING)


def write_results(connection: Connection, found: Sequence[ResultRecord], *, tell: bool = True) -> list[StoredResult]:
    """Write results into their jobs' rows, and into the segments of their batches. A job's last result wins.

    If `tell`, also store the events of the results, and give back the quotas of first results. Returns the results:
    those of jobs, then those of lines.
    """
    places = [line_of(record.result.job_id) for record in found]
    known = batches_of(connection, {place[0] for place in places if place is not None})
    single: list[ResultRecord] = []
    lines: defaultdict[tuple[str, str], list[Line]] = defaultdict(list)
    for record, place in zip(found, places, strict=True):
        batch = None if place is None else known.get((record.tenant, place[0]))
        if place is None or batch is None or place[1] >= batch.total:
            single.append(record)
        else:
            lines[record.tenant, place[0]].append((place[1], record))
    stored = _write_jobs(connection, single) if single else []
    events = [_event(one) for one in stored]
    for (tenant, batch_id), some in lines.items():
        first = write_segments(connection, known[tenant, batch_id], some)
        stored += (_answered(batch_id, *each, first=is_first) for each, is_first in zip(some, first, strict=True))
        events.append(_lines_event(known[tenant, batch_id], some))
    if tell:
        write_events(connection, events)
        release_answered(connection, [Answered(one.tenant, one.job_id, one.batch_id, one.first) for one in stored])
    return stored


def _write_jobs(connection: Connection, found: Sequence[ResultRecord]) -> list[StoredResult]:
    """Write results into the rows of their jobs."""
    known = _known(connection, {_key(each) for each in found})
    stored: list[StoredResult] = []
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for record in found:
        key = _key(record)
        url, is_first = known.get(key, (KAFKA, True))
        one = _stored(record, key[1], url, first=is_first)
        stored.append(one)
        known[key] = (url, False)
        rows[key] = _row(one)
    write_rows(connection, _upsert(connection.dialect.name), list(rows.values()))
    return stored


def write_attempts(connection: Connection, found: Sequence[AttemptRecord]) -> None:
    """Write callback attempts.

    If the topic was created again, a new attempt replaces the row of an old attempt at the same offset.
    """
    if not found:
        return
    statement = insert(connection, job_attempts)
    taken = {name: statement.excluded[name] for name in ("tenant", "job_id", "webhook_id", "at", "details")}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["topic_partition", "topic_offset"], set_=taken),
        [
            {
                "topic_partition": each.partition,
                "topic_offset": each.offset,
                "tenant": each.tenant,
                "job_id": each.job_id,
                "webhook_id": each.webhook_id,
                "at": each.at_ms,
                "details": each.details,
            }
            for each in found
        ],
    )


def _key(record: ResultRecord) -> tuple[str, str]:
    """Return the primary key of a result's job, as the database stores it."""
    return record.tenant, storable(record.result.job_id)[:256]


def _known(connection: Connection, keys: set[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, bool]]:
    """Return, for each job that has a row, the job's url, and True if the job has no result yet."""
    columns = (jobs.c.tenant, jobs.c.job_id, jobs.c.url, jobs.c.status)
    asked = select(*columns).where(pair_in(connection, (jobs.c.tenant, jobs.c.job_id), keys))
    return {(tenant, job_id): (url, status in _UNFINISHED) for tenant, job_id, url, status in connection.execute(asked)}


def _answered(batch_id: str, line: int, record: ResultRecord, *, first: bool) -> StoredResult:
    return _stored(record, record.result.job_id, BATCHES, batch_id=batch_id, line=line, first=first)


def _stored(
    record: ResultRecord, job_id: str, url: str, *, first: bool, batch_id: str | None = None, line: int | None = None
) -> StoredResult:
    return StoredResult(
        tenant=record.tenant,
        job_id=job_id,
        batch_id=batch_id,
        line=line,
        url=url,
        result=record.result,
        value=record.value,
        webhook_id=record.webhook_id,
        at_ms=record.at_ms,
        has_callback=record.has_callback,
        first=first,
    )


def _row(one: StoredResult) -> dict[str, Any]:
    result = one.result
    return {
        "tenant": one.tenant,
        "job_id": one.job_id,
        "url": one.url,
        "custom_id": result.custom_id,
        "model_id": result.model_id,
        "status": str(result.outcome),
        "created_at": one.at_ms,
        "finished_at": one.at_ms,
        "metadata": result.metadata,
        "result": one.value,
    }


@lru_cache(maxsize=8)
def _upsert(dialect: str) -> Insert:
    """Return the statement that inserts the rows of new jobs, and writes the results into existing rows."""
    statement = insert_of(dialect, jobs)
    new = statement.excluded
    kept = case((jobs.c.deleted_at.is_(None), new.result), else_=null())
    finished = {"status": new.status, "finished_at": new.finished_at, "result": kept}
    finished["model_id"] = func.coalesce(new.model_id, jobs.c.model_id)  # a rejection names no model
    return statement.on_conflict_do_update(index_elements=["tenant", "job_id"], set_=finished)


def _event(one: StoredResult) -> NewEvent:
    kind = event_type(one.result.outcome)
    return NewEvent(one.tenant, kind, one.job_id, one.at_ms, webhook_id=one.webhook_id)


def _lines_event(batch: Batch, lines: Sequence[Line]) -> NewEvent:
    """Return the row for the events of some lines of a batch; `batch` is its row before they were written."""
    data = to_json([batch.segments or 0, [[line, record.result.outcome] for line, record in lines]])
    return NewEvent(batch.tenant, LINES, batch.id, lines[-1][1].at_ms, data, count=len(lines))
