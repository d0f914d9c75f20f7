"""Removes old rows in small steps, so that no request waits behind a long deletion."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from sqlalchemy import ColumnElement, Connection, Table, and_, or_, select, tuple_

from gateway.accept.side_thread import SideThread
from gateway.access.quotas import release
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

Step = Callable[[Connection], int]
"""Removes some old rows, and returns their number."""


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
        kept_ms = now_ms - self._kept_ms
        steps: list[Step] = [partial(_jobs, before_ms=kept_ms), partial(_events, before_ms=kept_ms)]
        for time, before_ms in (
            (batch_segments.c.last_at, kept_ms),
            (job_attempts.c.at, kept_ms),
            (idempotency.c.created_at, now_ms - IDEMPOTENCY_HOURS * _HOUR_MS),
            (left_requests.c.created_at, now_ms - _HOUR_MS),  # their gateways ended; SDKs repeat within seconds
            (writers.c.at, now_ms - 24 * _HOUR_MS),
        ):
            # A segment is as large as hundreds of other rows.
            together = 1 if time.table is batch_segments else TOGETHER
            steps.append(partial(_remove, table=time.table, old=time < before_ms, together=together))
        return sum(map(self._all, steps))

    def _run(self) -> None:
        while self._goes_on():
            with suppress(StoreAway):  # the next round removes the rest
                self.remove_old()
            self._rest(LOOK_SECONDS)

    def _all(self, step: Step) -> int:
        """Repeat a step until it finds no old row."""
        total = 0
        while self._goes_on() and (removed := self._store.write_now(step)):
            total += removed
            self._rest(_BETWEEN_SECONDS)
        return total


def _jobs(connection: Connection, before_ms: int) -> int:
    never = before_ms - LATE_DAYS * 24 * _HOUR_MS
    old = or_(jobs.c.finished_at < before_ms, and_(jobs.c.finished_at.is_(None), jobs.c.created_at < never))
    key = (jobs.c.tenant, jobs.c.job_id)
    unfinished = select(*key).where(jobs.c.finished_at.is_(None), jobs.c.created_at < never).limit(TOGETHER)
    release(connection, [(row.tenant, row.job_id) for row in connection.execute(unfinished)])
    return _remove(connection, jobs, old)


def _events(connection: Connection, before_ms: int) -> int:
    """Remove old events from the lowest number on, because numbers nearly follow the events' ages."""
    first = connection.execute(select(events.c.number, events.c.at).order_by(events.c.number).limit(TOGETHER)).all()
    old = [row.number for row in first if row.at < before_ms]
    if old:
        connection.execute(events.delete().where(events.c.number.in_(old)))
    return len(old)


def _remove(connection: Connection, table: Table, old: ColumnElement[bool], together: int = TOGETHER) -> int:
    """Remove at most `together` old rows, and return their number.

    The database finds the old rows' keys by the index of their times, and deletes the rows by these keys.
    """
    key = list(table.primary_key.columns)
    some = select(*key).where(old).limit(together)
    return connection.execute(table.delete().where(tuple_(*key).in_(some))).rowcount
