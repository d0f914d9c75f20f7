"""`/v1/chat/completions`, `/v1/completions` and the endpoints for texts: one job whose answer is awaited.

A chat completion with `store: true` can be read, listed, changed and deleted later, by its job's row.
Source: OpenAI's API reference, "Create chat completion", "Get chat completion" and the following, and "Create
completion". `schemas.kind_bodies` names the sources of the endpoints for texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict

from gateway.door import query, submitted
from gateway.door.accepting import accept
from gateway.door.awaiting import answer_of, bounded
from gateway.door.body import parse_json
from gateway.door.endpoint import PAGING, Answer, Call, Parameter
from gateway.door.screened import screened
from gateway.door.streamed import AnswerStream, ChatEvents, taken_stream, wants_deltas
from gateway.errors import ApiError, not_found
from gateway.paging import list_body
from gateway.view.stored_jobs import JobFilter, StoredJob, delete_job, find_job, list_stored, relabel_job
from schemas.bounded import BoundedModel
from schemas.codec import read_result
from schemas.job import Metadata
from schemas.kind_bodies import EMBEDDINGS
from schemas.openai import CHAT_COMPLETIONS
from schemas.openai_answers import BINARY, answer_body, in_binary
from schemas.outcome import Outcome
from schemas.responses import NOTES
from schemas.result import Result
from schemas.strict import ignored_members
from telemetry.clock import unix_ms

PREFIX = "chatcmpl-"
"""A chat completion's id is this prefix and the job's id."""
LABEL = "metadata["
"""A parameter of a list with this prefix chooses by metadata, as in `metadata[team]=a`."""
FILTERS = (*PAGING, Parameter("model", "Only completions of this model."))
_SETTINGS = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
_TEXTS = ("response_format", "tools", "tool_choice", "messages")


async def create(call: Call) -> Answer:
    """Answer a body by one job.

    The request waits for the answer. When its time is over, the job is cancelled and the status is 504. A job that did
    not succeed is an error with its code. When the gateway stops, the status is 503: a repeat with the same
    `Idempotency-Key` gets the answer of the same job.
    """
    door, url = call.door, call.request.scope["path"]
    content = await call.content()
    body = parse_json(content)
    streams, with_usage = taken_stream(body) if url == CHAT_COMPLETIONS else (False, False)
    is_binary = url == EMBEDDINGS and isinstance(body, dict) and body.get("encoding_format") == BINARY
    if is_binary:
        del body["encoding_format"]
    job = bounded(submitted.openai_job(url, body, door.callbacks), door.settings.await_seconds)
    [let_in] = await screened(call, [job], len(content))
    notes, is_stored = ignored_members(url, body), url == CHAT_COMPLETIONS and body.get("store") is True
    kept = _kept(body, notes, is_redacted=let_in.job != job) if is_stored else None
    deltas = streams and wants_deltas(call, let_in.job)
    new = submitted.new_job(call, let_in, url, kept=kept, deltas=deltas)
    stored = await accept(call, content, [new], new.job_id.encode())

    def shown(result: Result) -> dict[str, Any]:
        answer = answer_body(result, url)
        return _noted(in_binary(answer) if is_binary else answer, notes)

    job_id = stored.body.decode()
    answer = answer_of(call, content, stored, job_id)
    if streams:
        events = ChatEvents(shown, job_id, int(door.clock.time()), job.model_id or "", with_usage=with_usage)
        return await AnswerStream.begun(call, job_id, answer, events, deltas=deltas)
    return shown(await answer)


# -- stored chat completions -------------------------------------------------------------------------------------------


class ChatCompletionChange(BoundedModel):
    """The body of a change of a stored chat completion."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    metadata: Metadata | None
    """The new metadata in place of the present one; null for none."""


async def retrieve(call: Call) -> Answer:
    """Read a stored chat completion.

    It is stored if the request had `store: true` and was answered.
    """
    return _stored(await _found(call))


async def several(call: Call) -> Answer:
    """List stored chat completions.

    `metadata[KEY]=VALUE` chooses those with this metadata; up to eight keys may be given. A page has at most 8 MiB and
    one completion more; `has_more` then says that there are others.
    """
    page, model = query.page(call.request, "asc"), call.request.query_params.get("model")
    if page.after is not None and not page.after.startswith(PREFIX):
        raise not_found("chat_completion", page.after)
    wanted = JobFilter(
        status=Outcome.SUCCEEDED,
        model_id=model,
        metadata=query.labels(call.request, LABEL, "]"),
        stored_url=CHAT_COMPLETIONS,
    )
    after = None if page.after is None else page.after.removeprefix(PREFIX)
    found, more = await call.read(list_stored, wanted, page.limit, after, ascending=page.ascending)
    return list_body([_stored(job) for job in found], has_more=more)


async def update(call: Call) -> Answer:
    """Change the metadata of a stored chat completion."""
    change: ChatCompletionChange = await call.body()
    await call.write(relabel_job, (await _found(call)).job_id, change.metadata or {})
    return _stored(await _found(call))


async def delete(call: Call) -> Answer:
    """Delete a stored chat completion with its messages."""
    job_id = (await _found(call)).job_id
    await call.write(delete_job, job_id, unix_ms(call.door.clock))
    return {"id": f"{PREFIX}{job_id}", "object": "chat.completion.deleted", "deleted": True}


async def list_messages(call: Call) -> Answer:
    """List the messages of a stored chat completion's request."""
    page, found = query.page(call.request, "asc"), await _found(call)
    messages = json.loads(found.request or b"{}").get("messages")
    if messages is None:
        raise ApiError(
            404, "input_not_stored", "The completion's messages were not stored: the input filter redacted them."
        )
    shown = [_message(f"{PREFIX}{found.job_id}-{number}", each) for number, each in enumerate(messages)]
    return query.page_of(shown, page, "message")


def _kept(body: Mapping[str, Any], notes: Sequence[str], *, is_redacted: bool) -> dict[str, Any]:
    """Return the members of a request that are stored with its completion; of a redacted request, none with texts."""
    names = _SETTINGS if is_redacted else (*_SETTINGS, *_TEXTS)
    return {name: body[name] for name in names if body.get(name) is not None} | {NOTES: notes}


def _noted(answer: dict[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """Return the answer with these further notes for its reader."""
    if notes:
        answer["postback"][NOTES] = [*answer["postback"].get(NOTES, ()), *notes]
    return answer


async def _found(call: Call) -> StoredJob:
    """Return the job of the stored completion in the path. Raises ApiError (404)."""
    identifier = call.in_path("completion_id")
    found = await call.read(find_job, identifier.removeprefix(PREFIX)) if identifier.startswith(PREFIX) else None
    if found is None or (found.url, found.status) != (CHAT_COMPLETIONS, Outcome.SUCCEEDED) or found.request is None:
        raise not_found("chat_completion", identifier)
    return found


def _stored(job: StoredJob) -> dict[str, Any]:
    request, result = json.loads(job.request or b"{}"), read_result(job.result or b"")
    shown = {name: request.get(name) for name in (*_SETTINGS, *_TEXTS) if name != "messages"}
    answer = _noted(answer_body(result, CHAT_COMPLETIONS), request[NOTES])
    return {**shown, **answer, "metadata": dict(job.metadata)}


def _message(identifier: str, message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    shown = {"name": None, **message, "content": content if parts is None else None, "content_parts": parts}
    return {**shown, "id": identifier}
