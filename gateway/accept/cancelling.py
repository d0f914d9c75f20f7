"""Cancels a job: the job's row becomes `cancelling`, and a record of `job_control` tells the workers to stop.

If a job is answered before its worker reads that record, the answer stands.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from gateway.accept.jobs import QUEUED
from gateway.accept.outbox import put_record
from gateway.errors import NO_RETRY, ApiError
from gateway.store.tables import jobs
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.outcome import Outcome
from schemas.topics import Topics
from telemetry.clock import Clock, unix_ms

CANCELLING = "cancelling"
FINISHED = frozenset(map(str, Outcome))
"""The statuses of jobs that have a result."""


class JobFinished(ApiError):  # noqa: N818 - it names what happened
    """The job has its result already."""

    def __init__(self, job_id: str, status: str) -> None:
        message = f"The job {job_id!r} has ended as {status!r}; a finished job cannot be cancelled."
        super().__init__(409, "job_finished", message, headers=NO_RETRY)


def cancel_job(connection: Connection, tenant: str, job_id: str, topics: Topics, clock: Clock) -> bool:
    """Ask the workers to cancel a job; False if the tenant has no row of this job. A second call changes nothing.

    Raises JobFinished.
    """
    this = (jobs.c.tenant == tenant) & (jobs.c.job_id == job_id) & jobs.c.deleted_at.is_(None)
    asked = connection.execute(jobs.update().where(this, jobs.c.status == QUEUED).values(status=CANCELLING))
    if asked.rowcount:
        put_control(connection, tenant, job_id, topics, unix_ms(clock))
        return True
    status = connection.execute(select(jobs.c.status).where(this)).scalar()
    if status in FINISHED:
        raise JobFinished(job_id, status)
    return status is not None


def put_control(connection: Connection, tenant: str, job_id: str, topics: Topics, at_ms: int) -> None:
    """Write into the outbox a record that tells the workers to cancel a job, or all jobs of a batch."""
    order = JobControl(tenant=tenant, job_id=job_id, state=ControlState.CANCELLED, at=at_ms)
    put_record(connection, topics.control, job_key_bytes(order.key), write_control(order))
