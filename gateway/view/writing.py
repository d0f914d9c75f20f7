"""Writes records of the fleet's topics into rows, in the transaction that moves the view's offsets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Connection, case, func, null, select
from sqlalchemy.dialects.sqlite import Insert

from gateway.accept.cancelling import CANCELLING
from gateway.accept.events import NewEvent, write_events
from gateway.accept.jobs import QUEUED
from gateway.access.quotas import release
from gateway.store.dialects import insert, insert_of, pair_in, write_rows
from gateway.store.tables import job_attempts, jobs
from gateway.view.records import KAFKA, AttemptRecord, ResultRecord
from gateway.view.segments import Batch, batches_of, write_segments
from gateway.view.stored_events import LINES
from gateway.view.stored_jobs import BATCHES, line_of
from schemas.event import event_type

OnResults = Callable[[Connection, Sequence[ResultRecord]], None]
"""A function that the view calls with results, in their order, in the transaction that writes their rows.

The function may run more than once for a transaction, and must have no effect but its rows. If the function raises, the
view calls it for each result alone; a result that fails again is written without the call.
"""


_UNFINISHED = (QUEUED, CANCELLING)


def write_results(connection: Connection, found: Sequence[ResultRecord], *, tell: bool = True) -> list[ResultRecord]:
    """Write results into their jobs' rows, and into the segments of their batches. A job's last result wins.

    If `tell`, also store the events of the results, and give back the quotas of first results. Returns the results with
    the facts about their jobs: those of jobs, then those of lines.
    """
    places = [line_of(record.result.job_id) for record in found]
    known = batches_of(connection, {place[0] for place in places if place is not None})
    single: list[ResultRecord] = []
    lines: defaultdict[tuple[str, str], list[ResultRecord]] = defaultdict(list)
    for record, place in zip(found, places, strict=True):
        batch = None if place is None else known.get((record.tenant, place[0]))
        if place is None or batch is None or place[1] >= batch.total:
            single.append(record)
        else:
            lines[record.tenant, batch.id].append(record._replace(url=BATCHES, batch_id=batch.id, line=place[1]))
    stored = _write_jobs(connection, single) if single else []
    events = [_event(one) for one in stored]
    for key, some in lines.items():
        stored += write_segments(connection, known[key], some)
        events.append(_lines_event(known[key], some))
    if tell:
        write_events(connection, events)
        first = [one for one in stored if one.first]
        jobs_of = [(one.tenant, one.job_id) for one in first if one.batch_id is None]
        release(connection, jobs_of, Counter((one.tenant, one.batch_id) for one in first if one.batch_id is not None))
    return stored


def _write_jobs(connection: Connection, found: Sequence[ResultRecord]) -> list[ResultRecord]:
    """Write results into the rows of their jobs."""
    known = _known(connection, {(each.tenant, each.job_id) for each in found})
    stored: list[ResultRecord] = []
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for record in found:
        key = record.tenant, record.job_id
        url, is_first = known.get(key, (KAFKA, True))
        stored.append(record._replace(url=url, first=is_first))
        known[key] = (url, False)
        rows[key] = _row(stored[-1])
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
    changed = statement.on_conflict_do_update(index_elements=["topic_partition", "topic_offset"], set_=taken)
    connection.execute(changed, [each._asdict() for each in found])


def _known(connection: Connection, keys: set[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, bool]]:
    """Return, for each job that has a row, the job's url, and True if the job has no result yet."""
    columns = (jobs.c.tenant, jobs.c.job_id, jobs.c.url, jobs.c.status)
    asked = select(*columns).where(pair_in(connection, (jobs.c.tenant, jobs.c.job_id), keys))
    return {(tenant, job_id): (url, status in _UNFINISHED) for tenant, job_id, url, status in connection.execute(asked)}


def _row(one: ResultRecord) -> dict[str, Any]:
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


def _event(one: ResultRecord) -> NewEvent:
    kind = event_type(one.result.outcome)
    return NewEvent(one.tenant, kind, one.job_id, one.at_ms, webhook_id=one.webhook_id)


def _lines_event(batch: Batch, lines: Sequence[ResultRecord]) -> NewEvent:
    """Return the row for the events of some lines of a batch; `batch` is its row before they were written."""
    data = to_json([batch.segments or 0, [[each.line, each.result.outcome] for each in lines]])
    return NewEvent(batch.tenant, LINES, batch.id, lines[-1].at_ms, data, lines=len(lines))
