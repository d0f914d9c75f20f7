"""Accepts the jobs of a request in one transaction, and only once for each `Idempotency-Key`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from gateway.accept.idempotency import StoredAnswer, once
from gateway.accept.jobs import JobsRequest, NewJob
from gateway.access.allowed import OF_A_BODY, OF_A_JOB, FieldNames, check_parts
from gateway.access.tenant_settings import TenantSettings
from gateway.door.door import Door
from gateway.door.endpoint import Call
from gateway.door.noted import note_objects
from gateway.door.retries import KEY_HEADER, leave, may_return, rejoined
from gateway.door.submitted import JOBS
from gateway.errors import NO_RETRY, RETRY_HEADER, ApiError
from telemetry.logs import get_logger, is_debugging
from telemetry.traces import annotate

log = get_logger()

_KEY = re.compile(r"[\x21-\x7e]{1,256}")
LANE_HEADER = "x-postback-lane"


def idempotency_key(request: Request) -> str | None:
    """Return the request's `Idempotency-Key`. Raises ApiError (400)."""
    key = request.headers.get(KEY_HEADER)
    if key is not None and not _KEY.fullmatch(key):
        raise ApiError(
            400, "invalid_idempotency_key", "The Idempotency-Key is not 1 to 256 characters of ASCII without spaces."
        )
    return key


def fingerprint(request: Request, body: bytes) -> bytes:
    """Return a hash of the method, the path, the query, the lane and the body."""
    lane = request.headers.get(LANE_HEADER, "")
    named = f"{request.method}\n{request.scope['path']}\n{lane}\n".encode("utf-8", "surrogatepass")
    return hashlib.sha256(b"%b%b\n%b" % (named, request.scope["query_string"], body)).digest()


async def write_once(
    call: Call,
    body: bytes,
    work: Callable[[Connection], StoredAnswer],
) -> StoredAnswer:
    """Run a change once for an `Idempotency-Key`; a repeat of the request gets the first request's answer.

    `body` may also be the hash of a body that is not in memory.
    Raises ApiError (400, 409), and everything that `work` raises.
    """
    key, print_of_it = _key_and_print(call.request, body)
    if (earlier := await rejoined(call, print_of_it)) is not None:
        return earlier

    def change(connection: Connection) -> StoredAnswer:
        return once(connection, call.tenant, key, print_of_it, lambda: work(connection), call.door.clock)

    return await call.door.store.write(change)


async def accept(
    call: Call,
    body: bytes,
    jobs: Sequence[NewJob],
    answer: bytes,
    status: int = 202,
) -> StoredAnswer:
    """Accept jobs, and return `answer` with the status; a repeat of the request gets the first request's answer.

    Raises ApiError (400, 403, 409, 429).
    """
    door = call.door
    key, print_of_it = _key_and_print(call.request, body)
    if (earlier := await rejoined(call, print_of_it)) is not None:
        return earlier
    settings = await door.access.tenant(call.tenant)
    _require_allowed(settings, jobs)
    await _require_known(door, jobs)
    made, topics = StoredAnswer(status, answer), door.fleet.kafka.topics
    asked = JobsRequest(call.principal, key, print_of_it, jobs, made, topics, door.clock, settings)
    stored = await door.store.write(asked)
    if stored.body == answer:  # a repeat finds another stored body, and accepts no job
        note_objects(call.request, [job.job_id for job in jobs], [job.prompt_sha256 for job in jobs])
        annotate({"jobs": len(jobs)} if len(jobs) > 1 else {"job_id": jobs[0].job_id})
        _say_accepted(call.tenant, jobs)
    return stored


def _key_and_print(request: Request, body: bytes) -> tuple[str | None, bytes]:
    """Return the request's key, and the fingerprint that its repeats must have.

    The fingerprint is empty for a request without a key, unless the request's client is an SDK that repeats.
    """
    key = idempotency_key(request)
    return key, b"" if key is None and RETRY_HEADER not in request.headers else fingerprint(request, body)


async def answered(call: Call, body: bytes, stored: StoredAnswer, object_id: str) -> Response:
    """Return a stored answer as an HTTP response, which a repeat gets too if the client has left already."""
    if may_return(call) and await call.request.is_disconnected():
        leave(call, fingerprint(call.request, body), stored, object_id, None)
    return response_of(stored)


def _require_allowed(settings: TenantSettings, jobs: Sequence[NewJob]) -> None:
    """Refuse jobs whose model or callback the tenant may not use. Raises ApiError (403), which names the field."""
    for index, job in enumerate(jobs):
        for problem in check_parts(settings, job.model_id, job.callback_url, _names_of(job)):
            place = _place(jobs, index, problem.field)
            raise ApiError(403, "not_allowed", f"{place}: {problem.reason}.", param=place, headers=NO_RETRY)


async def _require_known(door: Door, jobs: Sequence[NewJob]) -> None:
    """Refuse jobs for a model that no worker announced within a day. Raises ApiError (404)."""
    unknown = await door.models.unknown({job.model_id for job in jobs if job.model_id is not None})
    for index, job in enumerate(jobs):
        if job.model_id in unknown:
            place = _place(jobs, index, _names_of(job).model)
            message = f"The model {job.model_id!r} does not exist; GET /v1/models lists the models."
            raise ApiError(404, "model_not_found", message, param=place)


def _names_of(job: NewJob) -> FieldNames:
    return OF_A_JOB if job.url == JOBS else OF_A_BODY


def _place(jobs: Sequence[NewJob], index: int, field: str) -> str:
    """Return the place of a job's field in the request's body."""
    return field if len(jobs) == 1 else f"{index}.{field}"


def response_of(stored: StoredAnswer) -> Response:
    """Return a stored answer as an HTTP response."""
    return Response(stored.body, stored.status, media_type="application/json")


def _say_accepted(tenant: str, jobs: Sequence[NewJob]) -> None:
    if not is_debugging():
        return
    for job in jobs:
        log.debug("A job was accepted.", action="job-accepted", job_id=job.job_id, tenant=tenant)
