"""Counts the results of batches and gives quotas back, in the transactions in which the view stores results."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, select

from gateway.access.quotas import Answered, release_answered
from gateway.batches.orders import step
from gateway.batches.states import COUNTING, FINALIZING, IN_PROGRESS
from gateway.store.tables import batches
from gateway.view.segments import current_entries
from gateway.view.writing import StoredResult
from schemas.outcome import Outcome
from telemetry.clock import Clock, unix_ms


def counting(clock: Clock) -> Callable[[Connection, Sequence[StoredResult]], None]:
    """Return the function that the view calls with the results of each transaction."""

    def count(connection: Connection, results: Sequence[StoredResult]) -> None:
        for batch_id, outcomes in _by_batch(results).items():
            _count(connection, batch_id, outcomes, unix_ms(clock))

    return count


def give_back(connection: Connection, results: Sequence[StoredResult]) -> None:
    """Give back the quota of each job with its first result. The view calls this with the results of a transaction."""
    release_answered(connection, [Answered(one.tenant, one.job_id, one.batch_id, one.first) for one in results])


def recounting(clock: Clock) -> Callable[[Connection], None]:
    """Return the function that recounts the results of all running batches from their segments."""

    def recount(connection: Connection) -> None:
        running = select(batches.c.id).where(batches.c.status.in_(COUNTING))
        for batch_id in connection.execute(running).scalars().all():
            counts = Counter(entry.status == Outcome.SUCCEEDED for _, entry in current_entries(connection, batch_id))
            counted = {"completed": counts[True], "failed": counts[False]}
            connection.execute(batches.update().where(batches.c.id == batch_id).values(**counted))
            _end_if_answered(connection, batch_id, unix_ms(clock))

    return recount


def _by_batch(results: Sequence[StoredResult]) -> dict[str, list[Outcome]]:
    """Group first results by batch. If an operator put a job back, its second result is left out."""
    found: defaultdict[str, list[Outcome]] = defaultdict(list)
    for one in results:
        if one.first and one.batch_id is not None:
            found[one.batch_id].append(one.result.outcome)
    return found


def _count(connection: Connection, batch_id: str, outcomes: Sequence[Outcome], now_ms: int) -> None:
    """Add results to a batch's counts. When all lines have results, let the clerk finalise the batch."""
    this = (batches.c.id == batch_id) & batches.c.status.in_(COUNTING)
    completed = outcomes.count(Outcome.SUCCEEDED)
    added = {"completed": batches.c.completed + completed, "failed": batches.c.failed + len(outcomes) - completed}
    if connection.execute(batches.update().where(this).values(**added)).rowcount:
        _end_if_answered(connection, batch_id, now_ms)


def _end_if_answered(connection: Connection, batch_id: str, now_ms: int) -> None:
    """Let the clerk finalise a batch if all of its lines have results."""
    this = batches.c.id == batch_id
    answered = select(batches.c.id).where(this, batches.c.completed + batches.c.failed >= batches.c.total)
    if connection.execute(answered).first():
        step(connection, batch_id, IN_PROGRESS, FINALIZING, finalizing_at=now_ms)
