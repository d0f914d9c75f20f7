"""Cancels a job or a batch for a request."""

from __future__ import annotations

from sqlalchemy import Connection

from gateway.accept.cancelling import FINISHED, JobFinished, cancel_job, put_control
from gateway.access import Principal
from gateway.batches import orders
from gateway.batches.orders import BatchRow
from gateway.door.door import Door
from gateway.errors import not_found
from gateway.view.stored_jobs import find_job
from telemetry.clock import unix_ms


async def cancel(door: Door, principal: Principal, job_id: str) -> None:
    """Ask for a job's cancellation. Raises ApiError: 404, and 409 for a job that has ended."""
    topics = door.fleet.kafka.topics

    def change(connection: Connection) -> bool:
        if cancel_job(connection, principal.tenant, job_id, topics, door.clock):
            return True
        line = find_job(connection, principal.tenant, job_id)  # the job may be a batch's line without a row in `jobs`
        if line is None:
            return False
        if line.status in FINISHED:
            raise JobFinished(job_id, line.status)
        put_control(connection, principal.tenant, job_id, topics, unix_ms(door.clock))
        return True

    if not await door.store.write(change):
        raise not_found("job", job_id)


async def cancel_batch(door: Door, principal: Principal, batch_id: str) -> BatchRow:
    """Begin to cancel a batch, and return its row. Raises ApiError: 404, and 409 for a batch that has ended."""
    now_ms, topics = unix_ms(door.clock), door.fleet.kafka.topics
    row = await door.store.write(
        lambda connection: orders.cancel(connection, principal.tenant, batch_id, now_ms, topics)
    )
    door.batches_changed()
    return row
