"""Removes old rows in small steps, so that no request waits behind a long deletion."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

from sqlalchemy import ColumnElement, Connection, Table, and_, or_, select, tuple_

from gateway.accept.side_thread import SideThread
from gateway.access.quotas import release
from gateway.store.dialects import pair_in
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
        # Numbers nearly follow the events' ages, so that the first events are the old ones.
        first_events = select(events.c.number).order_by(events.c.number).limit(TOGETHER)
        old_rows = {
            batch_segments: batch_segments.c.last_at < kept_ms,
            events: and_(events.c.number.in_(first_events), events.c.at < kept_ms),
            job_attempts: job_attempts.c.at < kept_ms,
            idempotency: idempotency.c.created_at < now_ms - IDEMPOTENCY_HOURS * _HOUR_MS,
            left_requests: left_requests.c.created_at < now_ms - _HOUR_MS,  # of gateways that ended
            writers: writers.c.at < now_ms - 24 * _HOUR_MS,
        }
        steps = [partial(_remove, table=table, old=old) for table, old in old_rows.items()]
        return self._all(partial(_jobs, before_ms=kept_ms)) + sum(map(self._all, steps))

    def _run(self) -> None:
        while self._goes_on():
            with suppress(StoreAway):  # the next round removes the rest
                self.remove_old()
            self._rest(LOOK_SECONDS)

    def _all(self, step: Callable[[Connection], int]) -> int:
        """Repeat a step, which removes some old rows and returns their number, until it finds none."""
        total = 0
        while self._goes_on() and (removed := self._store.write_now(step)):
            total += removed
            self._rest(_BETWEEN_SECONDS)
        return total


def _jobs(connection: Connection, before_ms: int) -> int:
    """Remove some old jobs, give back their quotas, and return their number."""
    never = before_ms - LATE_DAYS * 24 * _HOUR_MS
    old = or_(jobs.c.finished_at < before_ms, and_(jobs.c.finished_at.is_(None), jobs.c.created_at < never))
    key = jobs.c.tenant, jobs.c.job_id
    found = [(row.tenant, row.job_id) for row in connection.execute(select(*key).where(old).limit(TOGETHER))]
    release(connection, found)  # for the unfinished ones
    return connection.execute(jobs.delete().where(pair_in(connection, key, found))).rowcount if found else 0


def _remove(connection: Connection, table: Table, old: ColumnElement[bool]) -> int:
    """Remove some old rows, and return their number. A segment of a batch is as large as hundreds of other rows.

    The database finds the old rows' keys by the index of their times, and deletes the rows by these keys.
    """
    key = list(table.primary_key.columns)
    some = select(*key).where(old).limit(1 if table is batch_segments else TOGETHER)
    return connection.execute(table.delete().where(tuple_(*key).in_(some))).rowcount
