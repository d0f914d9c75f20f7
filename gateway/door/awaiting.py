"""Requests that wait for their job's answer, for a bounded time.

The job's own time to live is bounded by the same time. So the job also ends if the gateway is killed meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from gateway.accept.cancelling import JobFinished, cancel_job
from gateway.accept.idempotency import StoredAnswer
from gateway.door.accepting import fingerprint, idempotency_key
from gateway.door.endpoint import Call
from gateway.door.retries import leave, may_return
from gateway.door.submitted import refusal
from gateway.errors import NO_RETRY, ApiError
from gateway.view.stored_jobs import find_result
from schemas.codec import read_result
from schemas.job import Job
from schemas.outcome import Outcome
from schemas.problems import Problem
from schemas.responses import error_status, told
from schemas.result import Result


def bounded(job: Job, seconds: float) -> Job:
    """Return the job with a time to live of at most `seconds`. Raises ApiError (400) for a job that starts later."""
    if job.not_before is not None:
        reason = "goes with requests that do not wait for the answer: /v1/jobs, batches, `background` of /v1/responses"
        raise refusal([(None, Problem("not_before", reason))])
    return job.model_copy(update={"ttl_seconds": min(job.ttl_seconds, seconds)})


async def answer_of(call: Call, body: bytes, stored: StoredAnswer, job_id: str) -> Result:
    """Return the result of a job that succeeded; `stored` is the answer to the acceptance of the request's `body`.

    The job is cancelled when its client leaves, its time is over, or the gateway stops (503). With an `Idempotency-Key`
    the job goes on when its client leaves or the gateway stops, and a repeat gets the answer. If an SDK leaves, the job
    goes on for RETURN_SECONDS, in which the SDK's repeat may join it. Raises ApiError for a job that did not succeed,
    ApiError (504) when the time is over, and ClientDisconnect.
    """
    try:
        value = await _unless_left(call, job_id)
    except ClientDisconnect:
        if may_return(call):
            leave(call, fingerprint(call.request, body), stored, job_id, partial(_cancel_in, call, job_id))
        elif idempotency_key(call.request) is None:
            _cancel(call, job_id)
        raise
    except asyncio.CancelledError:
        if idempotency_key(call.request) is None:
            _cancel(call, job_id)
        raise
    if value is None:
        _cancel(call, job_id)
        raise ApiError(
            504,
            "answer_timeout",
            f"The job {job_id} had no answer within {call.door.settings.await_seconds:g} s, and is cancelled. "
            "For long jobs use /v1/responses with `background`, or /v1/jobs.",
            headers=NO_RETRY,
        )
    result = read_result(value)
    if result.outcome is not Outcome.SUCCEEDED:
        code, message = told(result)
        raise ApiError(error_status(result), code, f"{message} (job {job_id})", headers=NO_RETRY)
    return result


async def _unless_left(call: Call, job_id: str) -> bytes | None:
    """Return the result's record; None when the time is over. Raises ClientDisconnect."""
    door = call.door

    async def look() -> bytes | None:
        return await door.store.read(lambda connection: find_result(connection, call.tenant, job_id))

    waiting = door.waiting.until((call.tenant, job_id), look, door.settings.await_seconds)
    return await unless_left(call.request.receive, waiting)


def _cancel(call: Call, job_id: str) -> None:
    """Queue the cancellation of a job, without waiting for it: the request itself may be cancelled."""
    call.door.store.submit(partial(_cancel_in, call, job_id))


def _cancel_in(call: Call, job_id: str, connection: Connection) -> None:
    with suppress(JobFinished):
        cancel_job(connection, call.tenant, job_id, call.door.fleet.kafka.topics, call.door.clock)


T = TypeVar("T")


async def unless_left(receive: Receive, work: Awaitable[T]) -> T:
    """Return the work's result. The request's body must have been read before.

    Raises the work's own error, and ClientDisconnect if the client ends the connection before the work ends.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    """Return when the client ends the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
