"""Writes records of the fleet's topics into rows, in the transaction that moves the view's offsets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, case, func, null, select
from sqlalchemy.dialects.sqlite import Insert

from gateway.accept.cancelling import CANCELLING
from gateway.accept.events import NewEvent, write_events
from gateway.accept.jobs import QUEUED
from gateway.store.dialects import insert, insert_of, pair_in, storable, write_rows
from gateway.store.tables import job_attempts, jobs
from gateway.view.records import AttemptRecord, ResultRecord
from gateway.view.stored_jobs import line_of
from schemas.event import event_type
from schemas.result import Result


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A result of `model_results` whose row the view has written in the present transaction."""

    tenant: str
    job_id: str
    batch_id: str | None
    """The batch that the job's id names. Only the rows of `batches` show whether the tenant has such a batch."""
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
BATCHES = "/v1/batches"
"""The `url` of a batch's line."""
_UNFINISHED = (QUEUED, CANCELLING)


def write_results(connection: Connection, found: Sequence[ResultRecord], *, tell: bool = True) -> list[StoredResult]:
    """Write results into their jobs' rows. If `tell`, also store an event for each result. A job's last result wins.

    Returns the results in the order of the records.
    """
    if not found:
        return []
    known = _known(connection, {_key(each) for each in found})
    stored: list[StoredResult] = []
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for record in found:
        key = _key(record)
        before = known.get(key)
        one = _stored(record, key[1], before)
        stored.append(one)
        known[key] = (one.url, False)
        rows[key] = _row(one)
    write_rows(connection, _upsert(connection.dialect.name), list(rows.values()))
    if tell:
        write_events(connection, [_event(one) for one in stored])
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


def _stored(record: ResultRecord, job_id: str, before: tuple[str, bool] | None) -> StoredResult:
    batch_id, line = line_of(job_id) or (None, None)
    return StoredResult(
        tenant=record.tenant,
        job_id=job_id,
        batch_id=batch_id,
        line=line,
        url=before[0] if before else KAFKA if line is None else BATCHES,
        result=record.result,
        value=record.value,
        webhook_id=record.webhook_id,
        at_ms=record.at_ms,
        has_callback=record.has_callback,
        first=before is None or before[1],
    )


def _row(one: StoredResult) -> dict[str, Any]:
    result = one.result
    return {
        "tenant": one.tenant,
        "job_id": one.job_id,
        "batch_id": one.batch_id,
        "line": one.line,
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
