"""Counts the results of batches and gives quotas back, in the transactions in which the view stores results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, func, select

from gateway.access.quotas import Answered, release_answered
from gateway.batches.orders import step
from gateway.batches.states import COUNTING, FINALIZING, IN_PROGRESS
from gateway.store.tables import batches, jobs
from gateway.view.writing import StoredResult
from schemas.outcome import Outcome
from telemetry.clock import Clock, unix_ms


def counting(clock: Clock) -> Callable[[Connection, Sequence[StoredResult]], None]:
    """Return the function that the view calls with the results of each transaction."""

    def count(connection: Connection, results: Sequence[StoredResult]) -> None:
        for (tenant, batch_id), lines in _by_batch(results).items():
            _count(connection, tenant, batch_id, lines, unix_ms(clock))

    return count


def give_back(connection: Connection, results: Sequence[StoredResult]) -> None:
    """Give back the quota of each job with its first result. The view calls this with the results of a transaction."""
    release_answered(connection, [Answered(one.tenant, one.job_id, one.batch_id, one.first) for one in results])


def recounting(clock: Clock) -> Callable[[Connection], None]:
    """Return the function that recounts the results of all running batches from their rows."""

    def recount(connection: Connection) -> None:
        running = select(batches.c.id, batches.c.tenant, batches.c.total).where(batches.c.status.in_(COUNTING))
        for batch in connection.execute(running).all():
            mine = (jobs.c.tenant == batch.tenant) & (jobs.c.batch_id == batch.id) & (jobs.c.line < batch.total)
            by_status = select(jobs.c.status, func.count()).where(mine, jobs.c.finished_at.is_not(None))
            found = connection.execute(by_status.group_by(jobs.c.status)).all()
            counts: dict[str, int] = {row[0]: row[1] for row in found}
            completed = counts.pop(Outcome.SUCCEEDED, 0)
            counted = {"completed": completed, "failed": sum(counts.values())}
            connection.execute(batches.update().where(batches.c.id == batch.id).values(**counted))
            _end_if_answered(connection, batch.id, unix_ms(clock))

    return recount


def _by_batch(results: Sequence[StoredResult]) -> dict[tuple[str, str], dict[int, Outcome]]:
    """Group first results by tenant and batch. If an operator put a job back, its second result is left out."""
    found: defaultdict[tuple[str, str], dict[int, Outcome]] = defaultdict(dict)
    for one in results:
        if one.first and one.batch_id is not None and one.line is not None:
            found[one.tenant, one.batch_id][one.line] = one.result.outcome
    return found


def _count(connection: Connection, tenant: str, batch_id: str, lines: dict[int, Outcome], now_ms: int) -> None:
    """Add lines with results to a batch's counts. When all lines have results, let the clerk finalise the batch.

    If the batch is another tenant's, change nothing.
    """
    this = batches.c.id == batch_id
    mine = select(batches.c.total).where(this, batches.c.tenant == tenant, batches.c.status.in_(COUNTING))
    total = connection.execute(mine.with_for_update()).scalar_one_or_none()
    if total is None:
        return
    outcomes = [outcome for line, outcome in lines.items() if line < total]
    completed = outcomes.count(Outcome.SUCCEEDED)
    added = {"completed": batches.c.completed + completed, "failed": batches.c.failed + len(outcomes) - completed}
    connection.execute(batches.update().where(this).values(**added))
    _end_if_answered(connection, batch_id, now_ms)


def _end_if_answered(connection: Connection, batch_id: str, now_ms: int) -> None:
    """Let the clerk finalise a batch if all of its lines have results."""
    this = batches.c.id == batch_id
    answered = select(batches.c.id).where(this, batches.c.completed + batches.c.failed >= batches.c.total)
    if connection.execute(answered).first():
        step(connection, batch_id, IN_PROGRESS, FINALIZING, finalizing_at=now_ms)
