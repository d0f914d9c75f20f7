"""Cancels jobs through a topic that every worker reads. A job that has its answer already keeps that answer."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Sequence

from cli.operations.compacted import put_facts
from producers.scan import Stored
from schemas.control import (
    ControlState,
    InvalidControl,
    JobControl,
    batch_of,
    job_key_bytes,
    read_control,
    read_job_key,
    write_control,
)
from schemas.settings import KafkaSettings
from telemetry.clock import Clock, SystemClock

_CLOCK = SystemClock()


def cancel(settings: KafkaSettings, tenant: str, job_ids: Sequence[str], clock: Clock = _CLOCK) -> None:
    """Cancel these jobs: each job without a result ends as `cancelled`. Returns when Kafka has the records.

    Raises ProducerError.
    """
    at = round(clock.time() * 1000)
    controls = [JobControl(tenant=tenant, job_id=job_id, state=ControlState.CANCELLED, at=at) for job_id in job_ids]
    put_facts(settings, settings.topics.control, [(job_key_bytes(one.key), write_control(one)) for one in controls])


def take_back(settings: KafkaSettings, tenant: str, job_ids: Sequence[str]) -> None:
    """Withdraw cancellations: workers again answer jobs with these ids, also jobs that are submitted later.

    Returns when Kafka has the records. A job that has already ended as `cancelled` keeps that result. Raises
    ProducerError.
    """
    put_facts(settings, settings.topics.control, [(job_key_bytes((tenant, job_id)), None) for job_id in job_ids])


class CancelledJobs:
    """The jobs cancelled in the last thirty days, from the records of `job_control`.

    The list is a file in SQLite's temporary directory. Workers forget cancellations much sooner.
    """

    def __init__(self, records: Iterable[Stored]) -> None:
        # "" makes a temporary database file, which SQLite removes (see sqlite3_open). Any thread may close the file,
        # because garbage collection may run on any thread.
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
        """True if the job is cancelled, or if the job is a line of a cancelled batch."""
        keys = [job_key_bytes((tenant, name)) for name in (job_id, batch_of(job_id) or job_id)]
        return self._index.execute("SELECT 1 FROM cancelled WHERE job IN (?, ?)", keys).fetchone() is not None
