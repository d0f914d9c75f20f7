"""`/v1/responses`: create, retrieve, cancel, delete, and the list of input items.

With `background` the response is answered at once as `queued`. Without `background`, the request waits for the answer.
Source: OpenAI's API reference, "Responses", and `openai-python`'s `resources/responses`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from gateway.door import query, submitted
from gateway.door.accepting import accept, answered
from gateway.door.awaiting import answer_of, bounded
from gateway.door.body import parse_json
from gateway.door.endpoint import Answer, Call
from gateway.door.routes.jobs import end_job, found_job
from gateway.door.screened import screened
from gateway.door.streamed import AnswerStream, ResponseEvents, taken_stream, wants_deltas
from gateway.errors import ApiError, conflict, not_found
from gateway.view.stored_jobs import StoredJob, delete_job, find_job, line_of
from schemas.codec import read_result
from schemas.openai import RESPONSES
from schemas.outcome import Outcome
from schemas.responses import (
    NOTES,
    PREFIX,
    continued,
    input_items,
    response_object,
    shown_members,
    unstored_members,
)
from schemas.result import Result
from schemas.strict import ignored_members
from telemetry.clock import unix_ms


async def create(call: Call) -> Answer:
    """Create a response.

    With `background` the answer comes at once, as `queued`. Without `background` the request waits for the answer. When
    its time is over, the job is cancelled and the status is 504. A job that did not succeed is an error with its code.
    When the gateway stops, the status is 503: a repeat with the same `Idempotency-Key` gets the answer of the same job.
    """
    door = call.door
    content = await call.content()
    body = parse_json(content)
    streams, _ = taken_stream(body)
    previous = body.pop("previous_response_id", None) if isinstance(body, dict) else None
    # An input of another kind stays as it is, and the check of the body refuses it.
    if previous is not None and isinstance(body.get("input"), str | list | None):
        body["input"] = await _continued(call, previous, body.get("input"))
    job = submitted.openai_job(RESPONSES, body, door.callbacks)
    background = body.get("background") is True
    if streams and background:
        raise query.invalid("stream", "is not supported with `background`; poll the response, or read /v1/events")
    if not background:
        job = bounded(job, door.settings.await_seconds)
    [let_in] = await screened(call, [job], len(content))
    shown = {**shown_members(body), NOTES: ignored_members(RESPONSES, body), "previous_response_id": previous}
    # A body that the filter redacted is not stored either.
    kept = shown if body.get("store") is not False and let_in.job == job else None
    deltas = streams and wants_deltas(call, let_in.job)
    new = submitted.new_job(call, let_in, RESPONSES, kept=kept, deltas=deltas)
    # The answer is stored for repeats, so it shows members that describe the request and none of its texts.
    told, now = kept if kept is not None else unstored_members(body), int(door.clock.time())
    queued = response_object(new.job_id, "queued", now, told, model_id=new.model_id, metadata=new.metadata)
    stored = await accept(call, content, [new], to_json(queued), 200)
    job_id = json.loads(stored.body)["id"].removeprefix(PREFIX)
    if background:
        return await answered(call, content, stored, job_id)
    answer = answer_of(call, content, stored, job_id)

    async def ended(result: Result) -> dict[str, Any]:
        return _object(await _found(call, job_id), result, shown)

    if streams:
        events = ResponseEvents(json.loads(stored.body), ended, job_id)
        return await AnswerStream.begun(call, job_id, answer, events, deltas=deltas)
    return await ended(await answer)


async def retrieve(call: Call) -> Answer:
    """Read a response."""
    if call.request.query_params.get("stream") in ("true", "1"):
        raise query.invalid("stream", "is not supported here; poll the response, or read /v1/events")
    return _object(await _found(call, _job_id(call)))


async def cancel(call: Call) -> Answer:
    """Cancel a response.

    A response whose end is not known yet is `in_progress`, and `postback.status` is `cancelling`.
    """
    door = call.door
    job_id = _job_id(call)
    if (await _found(call, job_id)).status != Outcome.CANCELLED:
        await end_job(call, job_id)

    async def look() -> StoredJob | None:
        found = await _found(call, job_id)
        return found if found.result is not None else None

    await door.waiting.until((call.tenant, job_id), look, door.settings.cancel_seconds)
    return _object(await _found(call, job_id))


async def delete(call: Call) -> Answer:
    """Delete a finished response with its answer and input."""
    job_id = _job_id(call)
    if line_of(job_id) is not None:  # its batch needs the result for the output file
        message = "The response is a line of a batch; delete the batch's output file instead."
        raise conflict("response_of_batch", message)
    found = await _found(call, job_id)
    if found.result is None:
        raise conflict("response_unfinished", "The response has not ended; cancel it before you delete it.")
    await call.write(delete_job, job_id, unix_ms(call.door.clock))
    return {"id": f"{PREFIX}{job_id}", "object": "response", "deleted": True}


async def list_input_items(call: Call) -> Answer:
    """List a response's input."""
    job_id, page = _job_id(call), query.page(call.request)
    found = await _found(call, job_id)
    if found.request is None:
        raise ApiError(
            404,
            "input_not_stored",
            "The response's input was not stored: `store` was false, or the input filter redacted it.",
        )
    return query.page_of(input_items(job_id, json.loads(found.request)), page, "item")


async def _continued(call: Call, previous: object, asked: str | list[Any] | None) -> list[Any]:
    """Return the input that continues the response of `previous_response_id`. Raises ApiError (400)."""
    if isinstance(previous, str) and previous.startswith(PREFIX):
        found = await call.read(find_job, previous.removeprefix(PREFIX))
        if found is not None and found.url == RESPONSES and found.request is not None:
            answer = _object(found)
            if answer["status"] in ("completed", "incomplete"):
                return continued(json.loads(found.request), answer["output"], asked)
    message = "The previous response is absent, unanswered or not stored; send the earlier messages."
    raise ApiError(400, "previous_response_not_found", message, param="previous_response_id")


async def _found(call: Call, job_id: str) -> StoredJob:
    return await found_job(call, job_id, "response", PREFIX)


def _job_id(call: Call) -> str:
    """Return the job's id in the path. Raises ApiError (404)."""
    identifier = call.in_path("response_id")
    if not identifier.startswith(PREFIX):
        raise not_found("response", identifier)
    return identifier.removeprefix(PREFIX)


def _object(job: StoredJob, result: Result | None = None, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the Response object of a job; `result` and `request` go before those of its row."""
    if result is None and job.result is not None:
        result = read_result(job.result)
    return response_object(
        job.job_id,
        job.status,
        job.created_ms // 1000,
        json.loads(job.request or b"{}") if request is None else request,
        model_id=job.model_id,
        metadata=job.metadata,
        result=result,
        finished_at=job.finished_ms // 1000 if job.finished_ms is not None else None,
    )
