"""Removes old rows in small steps, so that no request waits behind a long deletion."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import ColumnElement, Connection, Table, and_, or_, select, tuple_

from gateway.accept.side_thread import SideThread
from gateway.access.quotas import release_jobs
from gateway.store.store import Store, StoreAway
from gateway.store.tables import batch_segments, events, idempotency, job_attempts, jobs, left_requests, writers
from telemetry.clock import Clock, unix_ms

TOGETHER = 500
"""The maximum number of rows that one step removes."""
LOOK_SECONDS = 60.0
_BETWEEN_SECONDS = 0.05
_HOUR_MS = 3_600_000
IDEMPOTENCY_HOURS = 48
"""The age up to which idempotency keys are kept. OpenAI and others keep them for 24 hours only."""
LATE_DAYS = 8
"""A job without a result is kept for this many days beyond `kept_days`. Kafka keeps jobs for one day less."""

Step = Callable[[Connection, int], int]


class Retention(SideThread):
    """A `SideTask` that removes rows older than `kept_days`, and the rows of old idempotency keys."""

    def __init__(self, store: Store, kept_days: int, clock: Clock) -> None:
        super().__init__("retention", clock)
        self._store = store
        self._kept_ms = kept_days * 24 * _HOUR_MS

    def reasons(self) -> list[str]:
        """Return an empty list, because old rows do no harm for a while."""
        return []

    def remove_old(self) -> int:
        """Remove all old rows; return their number. Raises StoreAway."""
        now_ms = unix_ms(self._clock)
        steps: tuple[tuple[Step, int], ...] = (
            (_jobs, now_ms - self._kept_ms),
            (_segments, now_ms - self._kept_ms),
            (_attempts, now_ms - self._kept_ms),
            (_events, now_ms - self._kept_ms),
            (_keys, now_ms - IDEMPOTENCY_HOURS * _HOUR_MS),
            (_left, now_ms - _HOUR_MS),
            (_writers, now_ms - 24 * _HOUR_MS),
        )
        return sum(self._all(step, before_ms) for step, before_ms in steps)

    def _run(self) -> None:
        while self._goes_on():
            with suppress(StoreAway):  # the next round removes the rest
                self.remove_old()
            self._rest(LOOK_SECONDS)

    def _all(self, step: Step, before_ms: int) -> int:
        removed = TOGETHER
        total = 0
        while removed == TOGETHER and self._goes_on():
            removed = self._store.write_now(lambda connection: step(connection, before_ms))
            total += removed
            if removed == TOGETHER:
                self._rest(_BETWEEN_SECONDS)
        return total


def _jobs(connection: Connection, before_ms: int) -> int:
    never = before_ms - LATE_DAYS * 24 * _HOUR_MS
    old = or_(jobs.c.finished_at < before_ms, and_(jobs.c.finished_at.is_(None), jobs.c.created_at < never))
    key = (jobs.c.tenant, jobs.c.job_id)
    unfinished = select(*key).where(jobs.c.finished_at.is_(None), jobs.c.created_at < never).limit(TOGETHER)
    release_jobs(connection, [(row.tenant, row.job_id) for row in connection.execute(unfinished)])
    return _remove(connection, jobs, old)


def _segments(connection: Connection, before_ms: int) -> int:
    """Remove segments, each of which is as large as hundreds of other rows, one by one."""
    return TOGETHER * _remove(connection, batch_segments, batch_segments.c.last_at < before_ms, 1)


def _attempts(connection: Connection, before_ms: int) -> int:
    return _remove(connection, job_attempts, job_attempts.c.at < before_ms)


def _events(connection: Connection, before_ms: int) -> int:
    """Remove old events from the lowest number on, because numbers nearly follow the events' ages."""
    first = connection.execute(select(events.c.number, events.c.at).order_by(events.c.number).limit(TOGETHER)).all()
    old = [row.number for row in first if row.at < before_ms]
    if old:
        connection.execute(events.delete().where(events.c.number.in_(old)))
    return len(old)


def _keys(connection: Connection, before_ms: int) -> int:
    return _remove(connection, idempotency, idempotency.c.created_at < before_ms)


def _left(connection: Connection, before_ms: int) -> int:
    """Remove requests whose gateway ended before their repeats came; SDKs repeat within seconds."""
    return _remove(connection, left_requests, left_requests.c.created_at < before_ms)


def _writers(connection: Connection, before_ms: int) -> int:
    connection.execute(writers.delete().where(writers.c.at < before_ms))
    return 0


def _remove(connection: Connection, table: Table, old: ColumnElement[bool], together: int = TOGETHER) -> int:
    """Remove at most `together` old rows, and return their number.

    The database finds the old rows' keys by the index of their times, and deletes the rows by these keys.
    """
    key = list(table.primary_key.columns)
    some = select(*key).where(old).limit(together)
    return connection.execute(table.delete().where(tuple_(*key).in_(some))).rowcount
