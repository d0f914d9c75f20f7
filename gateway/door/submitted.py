"""Reads jobs from request bodies strictly, checks them, and makes them ready to be accepted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from starlette.requests import Request

from gateway.accept.jobs import NewJob
from gateway.door.body import parse_json, require_few_values
from gateway.door.endpoint import Call
from gateway.door.screened import ScreenedIn
from gateway.errors import ApiError
from gateway.view.stored_jobs import line_of
from producers.identity import new_job_id
from schemas import topics
from schemas.codec import write_job, wrong_start
from schemas.job import MAX_JOB_BYTES, Job
from schemas.problems import MAX_PROBLEMS, Problem
from schemas.screening import write_findings
from schemas.strict import NotAJob, body_job, job_in, job_of
from schemas.topics import Lane
from telemetry.clock import unix_ms
from telemetry.traces import current_trace, parse_traceparent
from workers.egress import EgressPolicy, EgressRefused, check_url

JOBS = "/v1/jobs"
_SPACE = b" \t\r\n"

Found = tuple[int | None, Problem]
"""A problem, and the index of its job in an array."""


def is_array(body: bytes) -> bool:
    """True if the body, provided that it is JSON, is an array."""
    return body.lstrip(_SPACE)[:1] == b"["


def one_job(body: bytes, policy: EgressPolicy) -> Job:
    """Return the job in a body. Raises ApiError (400) that names all problems."""
    require_few_values(body)
    try:
        return checked(job_in(body), policy)
    except NotAJob as error:
        raise refusal((None, problem) for problem in error.problems) from None


def many_jobs(body: bytes, most: int, policy: EgressPolicy) -> list[Job]:
    """Return the jobs in an array. Raises ApiError (400) that names the problems, each with its job's index."""
    documents: list[object] = parse_json(body)
    if not 1 <= len(documents) <= most:
        raise ApiError(400, "invalid_job", f"The array has {len(documents)} jobs; send 1 to {most} in one request.")
    jobs: list[Job] = []
    problems: list[Found] = []
    for index, document in enumerate(documents):
        try:
            jobs.append(checked(job_of(document), policy))
        except NotAJob as error:
            problems += [(index, problem) for problem in error.problems]
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems or (problems := _repeated(jobs)):
        raise refusal(problems[:MAX_PROBLEMS])
    return jobs


def openai_job(url: str, body: Any, policy: EgressPolicy) -> Job:
    """Return the job of a body to one of OpenAI's URLs. Raises ApiError (400) that names all problems."""
    try:
        return checked(body_job(url, body), policy, callback="metadata.webhook_url")
    except NotAJob as error:
        raise refusal((None, problem) for problem in error.problems) from None


def checked(job: Job, policy: EgressPolicy, callback: str = "callback_url") -> Job:
    """Return the job, unless a rule outside the job's schema refuses the job. Raises NotAJob."""
    if job.job_id is not None and line_of(job.job_id) is not None:
        raise NotAJob(Problem("job_id", "has the form of a batch line's id; choose another one"))
    if job.callback_url is not None:
        try:
            check_url(job.callback_url, policy)
        except EgressRefused as refused:
            raise NotAJob(Problem(callback, f"must not be called: {refused}")) from None
    return job


def new_job(
    call: Call,
    let_in: ScreenedIn,
    url: str,
    *,
    lane: Lane = "default",
    kept: Mapping[str, Any] | None = None,
    index: int | None = None,
    deltas: bool = False,
) -> NewJob:
    """Return the job with an id, ready to be accepted.

    Raises ApiError (400) if the job's record would be too large, or its `not_before` is too late.

    `kept` are members of the request's body that are stored with the job. `index` is the job's place in an array. With
    `deltas`, the answer is to come piece by piece.
    """
    (job, findings), clock, traceparent = let_in, call.door.clock, traceparent_of(call.request)
    named = job if job.job_id is not None else job.model_copy(update={"job_id": new_job_id(clock)})
    if late := wrong_start(job, unix_ms(clock)):
        raise refusal((index, problem) for problem in late)
    value = write_job(named)
    if len(value) > MAX_JOB_BYTES:
        place = "" if index is None else f"{index}: "
        message = f"{place}The job {named.job_id!r} has more than {MAX_JOB_BYTES} bytes as a record."
        raise ApiError(400, "invalid_job", message, None if index is None else str(index))
    return NewJob(
        job_id=str(named.job_id),
        url=url,
        value=value,
        headers=[
            *([(topics.TRACEPARENT, traceparent.encode())] if traceparent is not None else ()),
            *([(topics.SCREENING, write_findings(findings))] if findings else ()),
            *([(topics.DELTAS, b"1")] if deltas else ()),
        ],
        lane=lane,
        model_id=job.model_id,
        custom_id=job.custom_id,
        metadata=job.metadata,
        prompt_sha256=job.prompt_sha256,
        callback_url=job.callback_url,
        max_tokens=job.max_tokens,
        not_before_ms=None if job.not_before is None else round(1000 * job.not_before),
        request=to_json(kept) if kept is not None else None,
    )


def traceparent_of(request: Request) -> str | None:
    """Return the `traceparent` of the request's span.

    If no collector is set, return the client's `traceparent`, if any.
    """
    trace = current_trace() or parse_traceparent(request.headers.get(topics.TRACEPARENT))
    return trace.traceparent if trace is not None else None


def refusal(problems: Iterable[Found]) -> ApiError:
    """Return the 400 that names each problem with its job's index and its field."""
    found = [
        (index, problem.field if index is None else f"{index}.{problem.field}", problem) for index, problem in problems
    ]
    said = [{"index": index, "field": problem.field, "reason": problem.reason} for index, _, problem in found]
    message = "; ".join(f"{place}: {problem.reason}" for _, place, problem in found)
    return ApiError(400, "invalid_job", message, param=found[0][1], problems=said)


def _repeated(jobs: Sequence[Job]) -> list[Found]:
    """Return a problem for each job whose id an earlier job of the array has."""
    first: dict[str, int] = {}
    return [
        (index, Problem("job_id", f"is also the id of job {first[job.job_id]}"))
        for index, job in enumerate(jobs)
        if job.job_id is not None and first.setdefault(job.job_id, index) != index
    ]
