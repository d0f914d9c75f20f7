"""`/v1/chat/completions`, `/v1/completions` and the endpoints for texts: one job whose answer is awaited.

Source: OpenAI's API reference, "Create chat completion" and "Create completion". `schemas.kind_bodies` names the
sources of the endpoints for texts.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from gateway.door import submitted
from gateway.door.accepting import accept
from gateway.door.awaiting import answer_of, bounded
from gateway.door.body import json_response, parse_json
from gateway.door.endpoint import Call
from gateway.door.screened import screened
from gateway.door.streamed import AnswerStream, chat_events, chat_failed, taken_stream
from schemas.kind_bodies import EMBEDDINGS
from schemas.openai import CHAT_COMPLETIONS
from schemas.openai_answers import BINARY, answer_body, in_binary
from schemas.responses import NOTES
from schemas.result import Result
from schemas.strict import ignored_members


async def create(call: Call) -> Response | AnswerStream:
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
    new = submitted.new_job(let_in, url, door.clock, traceparent=submitted.traceparent_of(call.request))
    stored = await accept(call, content, [new], to_json({"job_id": new.job_id}))
    note = ignored_members(url, body)

    def shown(result: Result) -> dict[str, Any]:
        answer = in_binary(answer_body(result, url)) if is_binary else answer_body(result, url)
        if note is not None:
            answer["postback"][NOTES] = [*answer["postback"].get(NOTES, ()), note]
        return answer

    async def events(result: Result) -> list[bytes]:
        return chat_events(shown(result), with_usage=with_usage)

    answer = answer_of(call, json.loads(stored.body)["job_id"])
    if streams:
        return await AnswerStream.begun(answer, events, chat_failed, door.settings.heartbeat_seconds)
    return json_response(shown(await answer))
