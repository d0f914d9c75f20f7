"""`/v1/jobs`: Postback's own API for single jobs.

`POST /v1/jobs` takes one job object, or an array of jobs that are accepted together or not at all. The answer to an
object is a job object, and the answer to an array is a list of job objects.
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic_core import to_json
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from gateway.accept.cancelling import FINISHED, JobFinished, cancel_job, put_control
from gateway.accept.jobs import NewJob
from gateway.door import query, submitted
from gateway.door.accepting import LANE_HEADER, accept, response_of
from gateway.door.endpoint import PAGING, Answer, Call, Parameter
from gateway.door.screened import screened
from gateway.errors import not_found
from gateway.paging import list_body
from gateway.view.stored_jobs import JobFilter, StoredJob, find_job, list_jobs
from schemas.codec import read_result, write_result
from schemas.outcome import Outcome
from schemas.topics import Lane
from telemetry.clock import unix_ms

LANE = "lane"
_LANES: tuple[Lane, ...] = get_args(Lane)
STATUSES = ("queued", "cancelling", *map(str, Outcome))
METADATA = "metadata."
_TIME = "as Unix seconds, ISO 8601, or a duration before now such as `-2h`"
FILTERS = (
    *PAGING,
    Parameter("status", "Only jobs in this state.", {"enum": list(STATUSES)}),
    Parameter("batch", "Only lines of this batch that have a result."),
    Parameter("model", "Only jobs of this model."),
    Parameter("created_after", f"Only jobs created after this time, {_TIME}."),
    Parameter("created_before", f"Only jobs created before this time, {_TIME}."),
)
"""The parameters of a list of jobs, beside those that begin with `METADATA`."""


async def create(call: Call) -> Answer:
    """Submit one job, or an array of jobs.

    An array is accepted whole or not at all. Unknown fields are refused, and a problem names its job's index.
    """
    door, lane = call.door, _lane(call.request)
    body = await call.content()
    many = submitted.is_array(body)
    if many:
        jobs = submitted.many_jobs(body, door.settings.jobs_per_request, door.callbacks)
    else:
        jobs = [submitted.one_job(body, door.callbacks)]
    let_in = await screened(call, jobs, len(body))
    new = [
        submitted.new_job(call, job, submitted.JOBS, lane=lane, index=index if many else None)
        for index, job in enumerate(let_in)
    ]
    now = int(door.clock.time())
    shown = [_accepted(one, now) for one in new]
    answer = to_json(list_body(shown, has_more=False) if many else shown[0])
    return response_of(await accept(call, body, new, answer))


async def retrieve(call: Call) -> Answer:
    """Read a job with its result."""
    job = await found_job(call, call.in_path("job_id"))
    head = to_json(shown(job))
    result = write_result(read_result(job.result)) if job.result is not None else b"null"
    return Response(head[:-1] + b',"result":' + result + b"}", media_type="application/json")


async def several(call: Call) -> Answer:
    """List jobs, without their results.

    `metadata.KEY=VALUE` chooses jobs with this metadata; up to eight keys may be given.
    """
    page, wanted = query.page(call.request), job_filter(call.request, call.door.clock.time())
    found, more = await call.read(list_jobs, wanted, page.limit, page.after, ascending=page.ascending)
    return list_body([shown(job) for job in found], has_more=more)


async def cancel(call: Call) -> Answer:
    """Cancel a job.

    A job that has ended is a 409. A result that is older than the cancellation remains.
    """
    await end_job(call, call.in_path("job_id"))
    found = await found_job(call, call.in_path("job_id"))
    status = found.status if found.status != "queued" else "cancelling"
    return {**shown(found), "status": status}


async def end_job(call: Call, job_id: str) -> None:
    """Ask for a job's cancellation. Raises ApiError: 404, and 409 for a job that has ended."""
    topics, clock = call.door.fleet.kafka.topics, call.door.clock

    def change(connection: Connection, tenant: str) -> bool:
        if cancel_job(connection, tenant, job_id, topics, clock):
            return True
        line = find_job(connection, tenant, job_id)  # the job may be a batch's line without a row in `jobs`
        if line is None:
            return False
        if line.status in FINISHED:
            raise JobFinished(job_id, line.status)
        put_control(connection, tenant, job_id, topics, unix_ms(clock))
        return True

    if not await call.write(change):
        raise not_found("job", job_id)


async def found_job(call: Call, job_id: str, kind: str = "job", prefix: str = "") -> StoredJob:
    """Return a job. Raises ApiError (404), which names the object of this kind whose id is the prefix and the job's."""
    found = await call.read(find_job, job_id)
    if found is None:
        raise not_found(kind, f"{prefix}{job_id}")
    return found


def job_filter(request: Request, now: float) -> JobFilter:
    """Return the conditions that the query sets. `now` is in Unix seconds. Raises ApiError (400)."""
    return JobFilter(
        status=query.one_of(request, "status", STATUSES),
        batch_id=request.query_params.get("batch"),
        model_id=request.query_params.get("model"),
        created_after_ms=query.time_ms(request, "created_after", now),
        created_before_ms=query.time_ms(request, "created_before", now),
        metadata=query.labels(request, METADATA),
    )


def shown(job: StoredJob) -> dict[str, Any]:
    """Return a job as the API shows it, without its result. Times are Unix seconds."""
    return {
        "id": job.job_id,
        "object": "job",
        "status": job.status,
        "created_at": job.created_ms // 1000,
        "not_before": job.not_before_ms // 1000 if job.not_before_ms is not None else None,
        "finished_at": job.finished_ms // 1000 if job.finished_ms is not None else None,
        "url": job.url,
        "model_id": job.model_id,
        "custom_id": job.custom_id,
        "batch_id": job.batch_id,
        "line": job.line,
        "metadata": dict(job.metadata),
        "submitted_by": job.submitted_by,
        "prompt_sha256": job.prompt_sha256,
    }


def _accepted(job: NewJob, now: int) -> dict[str, Any]:
    """Return the job object of a job that is accepted now."""
    return {
        "id": job.job_id,
        "object": "job",
        "status": "queued",
        "created_at": now,
        "model_id": job.model_id,
        "custom_id": job.custom_id,
        "metadata": job.metadata,
    }


def _lane(request: Request) -> Lane:
    """Return the lane that the parameter `lane` or the header `x-postback-lane` names. Raises ApiError (400)."""
    said = request.query_params.get(LANE, request.headers.get(LANE_HEADER, "default"))
    for lane in _LANES:
        if said == lane:
            return lane
    raise query.invalid(LANE, f"is none of {', '.join(_LANES)}")
