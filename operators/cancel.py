"""Cancellation of jobs through a topic that every worker follows. Of answer and cancellation, the first counts."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Sequence

from operators.compacted import put_facts
from producers.scan import Stored
from schemas.control import (
    ControlState,
    InvalidControl,
    JobControl,
    job_key_bytes,
    read_control,
    read_job_key,
    write_control,
)
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, SystemClock

_CLOCK = SystemClock()


def cancel(settings: KafkaSettings, tenant: str, job_ids: Sequence[str], clock: Clock = _CLOCK) -> None:
    """Cancel these jobs: each without a result by then ends as `cancelled`. Returns once Kafka has the records.

    Raises ProducerError.
    """
    at = round(clock.time() * 1000)
    controls = [JobControl(tenant=tenant, job_id=job_id, state=ControlState.CANCELLED, at=at) for job_id in job_ids]
    put_facts(settings, settings.topics.control, [(job_key_bytes(one.key), write_control(one)) for one in controls])


def take_back(settings: KafkaSettings, tenant: str, job_ids: Sequence[str]) -> None:
    """Withdraw cancellations: jobs of these ids are answered again, also new ones. Returns once Kafka has the records.

    A job that ended as `cancelled` meanwhile keeps that result. Raises ProducerError.
    """
    put_facts(settings, settings.topics.control, [(job_key_bytes((tenant, job_id)), None) for job_id in job_ids])


class CancelledJobs:
    """The cancelled jobs of up to thirty days, from the records of `job_control`.

    SQLite's temporary directory holds them. Workers forget them much sooner.
    """

    def __init__(self, records: Iterable[Stored]) -> None:
        # "": a file of its own, which SQLite removes (sqlite3_open, SQLite). Any thread may close it, as garbage.
        self._index = sqlite3.connect("", check_same_thread=False)
        weakref.finalize(self, self._index.close)
        self._index.execute("CREATE TABLE cancelled (job BLOB PRIMARY KEY) WITHOUT ROWID")
        for record in records:
            try:
                job = job_key_bytes(read_job_key(record.key))
                cancelled = record.value is not None and read_control(record.value).state is ControlState.CANCELLED
            except InvalidControl:
                continue
            statement = (
                "INSERT OR IGNORE INTO cancelled VALUES (?)" if cancelled else "DELETE FROM cancelled WHERE job = ?"
            )
            self._index.execute(statement, (job,))

    def holds(self, tenant: str, job_id: str) -> bool:
        """True if this job is cancelled."""
        found = self._index.execute("SELECT 1 FROM cancelled WHERE job = ?", (job_key_bytes((tenant, job_id)),))
        return found.fetchone() is not None
