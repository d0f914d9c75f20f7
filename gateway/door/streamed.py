"""Answers as streams, in the events that OpenAI's SDKs read.

The text of an answer that is final as the model writes it comes piece by piece while its job runs, by the channel of
`workers.system.deltas`. The result decides: it must continue the text that was sent, and the rest of the answer is the
result's. A result that says something else ends the stream with an error, since sent text cannot be withdrawn. Every
other answer comes as a whole.

Without text, the stream carries comments, which keep the connection open. The head of the response waits a moment for
the answer or its first piece, so that a refusal that comes soon has its own status.
Sources: OpenAI's API reference, "Streaming" of chat completions and of responses; WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, nullcontext
from io import StringIO
from itertools import count
from typing import Any

from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from gateway.door.endpoint import Call
from gateway.door.handlers import REFUSALS, refusal_of
from gateway.door.routes.events import HEADERS, stream_part
from gateway.errors import ApiError
from schemas.job import Job
from schemas.result import Result
from workers.system.deltas import Listener

HEAD_SECONDS = 2.0
_KEEP_ALIVE = b": waiting for the answer\n\n"
DONE = b"data: [DONE]\n\n"


def taken_stream(body: Any) -> tuple[bool, bool]:
    """Take `stream` and `stream_options` out of a request's body, because a job has neither.

    Returns True if the answer is to be streamed, and True if the stream ends with the usage. Raises ApiError (400).
    """
    if not isinstance(body, dict) or body.get("stream") is not True:
        return False, False
    del body["stream"]
    options = body.pop("stream_options", None) or {}
    if not isinstance(options, dict) or not isinstance(options.get("include_usage", False), bool):
        name = "stream_options"
        raise ApiError(400, "invalid_value", f"{name}: is no object with `include_usage`.", param=name)
    return True, options.get("include_usage", False)


def wants_deltas(call: Call, job: Job) -> bool:
    """True if the answer of a job, whose client wants a stream, comes piece by piece."""
    return call.door.deltas is not None and job.is_final_as_generated


class AnswerStream:
    """A response that ends with its job's answer."""

    def __init__(
        self, answering: asyncio.Task[Result], events: ChatEvents | ResponseEvents, listener: Listener
    ) -> None:
        self._answering = answering
        self._events = events
        self._listener = listener
        self._stack = AsyncExitStack()
        """The stream closes it at its end."""
        self._seconds = HEAD_SECONDS
        """The time between two comments."""
        answering.add_done_callback(lambda _: listener.changed.set())

    @classmethod
    async def begun(
        cls,
        call: Call,
        job_id: str,
        answer: Awaitable[Result],
        events: ChatEvents | ResponseEvents,
        *,
        deltas: bool,
    ) -> AnswerStream:
        """Wait HEAD_SECONDS for the answer or its first piece, then return the stream.

        Pieces come with `deltas` only. Raises the error of an answer that came by then.
        """
        async with AsyncExitStack() as stack:
            answering = asyncio.ensure_future(answer)
            stack.callback(answering.cancel)
            channel = call.door.deltas if deltas else None
            heard = nullcontext(Listener()) if channel is None else channel.hearing(call.tenant, job_id)
            begun = cls(answering, events, await stack.enter_async_context(heard))
            await begun._has_news(HEAD_SECONDS)
            if answering.done():
                answering.result()
            begun._stack, begun._seconds = stack.pop_all(), call.door.settings.heartbeat_seconds
            return begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the text's pieces, or comments, until the answer is there, then the rest of it."""
        sent = 0
        async with self._stack:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            while not self._answering.done():
                piece = self._listener.text_from(sent)
                if piece:
                    sent += len(piece)
                    await send(stream_part(b"".join(self._events.delta(piece))))
                elif not await self._has_news(self._seconds):
                    await send(stream_part(_KEEP_ALIVE))
            try:
                events = await self._events.ended(self._answering.result())
            except REFUSALS as error:
                events = [self._events.failed(refusal_of(error))]
            await send({"type": "http.response.body", "body": b"".join(events)})

    async def _has_news(self, seconds: float) -> bool:
        """Wait for the answer or a further piece. Return False if none comes in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._listener.changed.wait()
        except TimeoutError:
            return False
        self._listener.changed.clear()
        return True


def rest_of(text: str | None, sent: str) -> str:
    """Return the part of an answer's text after the sent part. Raises ApiError if the answer begins otherwise."""
    if not (text or "").startswith(sent):
        message = "The job was answered again with another text than the one that was sent; ask again."
        raise ApiError(500, "answer_changed", message)
    return (text or "")[len(sent) :]


class ChatEvents:
    """The events of one answer's stream: the chunks of a chat completion."""

    def __init__(
        self, shown: Callable[[Result], dict[str, Any]], job_id: str, created: int, model: str, *, with_usage: bool
    ) -> None:
        """`shown` returns the completion of a result. `created` and `model` are those of chunks before the result."""
        self._shown = shown
        self._base: dict[str, Any] = {"id": f"chatcmpl-{job_id}", "created": created, "model": model}
        self._with_usage = with_usage
        self._sent = StringIO()

    def delta(self, piece: str) -> list[bytes]:
        """Return the events of the text's next piece."""
        first = [] if self._sent.tell() else [self._chunk(0, {"role": "assistant", "content": ""})]
        self._sent.write(piece)
        return [*first, self._chunk(0, {"content": piece})]

    async def ended(self, result: Result) -> list[bytes]:
        """Return the events of what was not sent yet. Raises ApiError for an answer that does not continue the text."""
        answer, made, sent = self._shown(result), [], self._sent.getvalue()
        if not sent:
            self._base = {name: answer[name] for name in self._base}
        for choice in answer["choices"]:
            message, index = choice["message"], choice["index"]
            if sent:
                message = {**message, "content": rest_of(message["content"], sent)}
            else:
                made.append(self._chunk(index, {"role": "assistant", "content": ""}))
            said = {name: message[name] for name in _SAID if message.get(name)}
            if calls := message.get("tool_calls"):
                said["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
            if said:
                made.append(self._chunk(index, said, logprobs=choice["logprobs"]))
            made.append(self._chunk(index, {}, choice["finish_reason"]))
        usage = {"usage": answer["usage"]} if self._with_usage else {}
        return [*made, self._event({"choices": [], "postback": answer["postback"], **usage}), DONE]

    def failed(self, error: ApiError) -> bytes:
        """Return the event of an answer that failed after the response's head."""
        return _data(error.body) + DONE

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> bytes:
        usage = {"usage": None} if self._with_usage else {}
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return self._event({**usage, "choices": [choice]})

    def _event(self, members: dict[str, Any]) -> bytes:
        return _data({**self._base, "object": "chat.completion.chunk", **members})


_SAID = ("content", "reasoning", "reasoning_content")


class ResponseEvents:
    """The events of a response."""

    def __init__(
        self, queued: dict[str, Any], shown: Callable[[Result], Awaitable[dict[str, Any]]], job_id: str
    ) -> None:
        """`queued` is the response before its answer, and `shown` returns the response of a result."""
        self._begun = {**queued, "status": "in_progress"}
        self._shown = shown
        self._message = {"id": f"msg_{job_id}", "type": "message", "role": "assistant", "content": []}
        self._numbers = count()
        self._sent = StringIO()

    def delta(self, piece: str) -> list[bytes]:
        """See `ChatEvents`."""
        made = []
        if not self._sent.tell():
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            made = [*self._created(), self._added(0, self._message)]
            made.append(self._in_message("response.content_part.added", part=part))
        self._sent.write(piece)
        return [*made, self._in_message("response.output_text.delta", delta=piece, logprobs=[])]

    async def ended(self, result: Result) -> list[bytes]:
        """See `ChatEvents`. A message that was begun stays the first item, before the reasoning."""
        answer, was_sent = await self._shown(result), self._sent.getvalue()
        if was_sent:
            answer = {**answer, "output": sorted(answer["output"], key=lambda item: item["type"] != "message")}
        made = [] if was_sent else self._created()
        for place, item in enumerate(answer["output"]):
            sent = was_sent if place == 0 else ""
            made += [] if sent else [self._added(place, item)]
            at = {"output_index": place, "item_id": item["id"]}
            made += (self._event(kind, **at, **members) for kind, members in _parts(item, sent))
            made.append(self._event("response.output_item.done", output_index=place, item=item))
        return [*made, self._event(f"response.{answer['status']}", response=answer)]

    def failed(self, error: ApiError) -> bytes:
        """See `ChatEvents`."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def _created(self) -> list[bytes]:
        kinds = ("response.created", "response.in_progress")
        return [self._event(kind, response=self._begun) for kind in kinds]

    def _added(self, place: int, item: dict[str, Any]) -> bytes:
        empty = {**item, "status": "in_progress"} | {name: blank for name, blank in _BLANK.items() if name in item}
        return self._event("response.output_item.added", output_index=place, item=empty)

    def _in_message(self, kind: str, **members: Any) -> bytes:
        return self._event(kind, output_index=0, item_id=self._message["id"], content_index=0, **members)

    def _event(self, kind: str, **members: Any) -> bytes:
        return _named(kind, {"type": kind, "sequence_number": next(self._numbers), **members})


_BLANK: dict[str, Any] = {"content": [], "arguments": ""}


def _parts(item: dict[str, Any], sent: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events between an item's begin and its end, without those of the text that was sent.

    Raises ApiError if the item is another answer than the sent one.
    """
    if item["type"] == "function_call":
        yield "response.function_call_arguments.delta", {"delta": item["arguments"]}
        yield "response.function_call_arguments.done", {"arguments": item["arguments"], "name": item["name"]}
    elif item["type"] == "message":
        for index, part in enumerate(item["content"]):
            yield from ((kind, {"content_index": index, **members}) for kind, members in _part(part, sent))


def _part(part: dict[str, Any], sent: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of one part of a message, which is a text or a refusal. Raises ApiError, see `_parts`."""
    kind, said = part["type"], "refusal" if part["type"] == "refusal" else "text"
    logprobs = {} if said == "refusal" else {"logprobs": part["logprobs"]}
    rest = rest_of(part.get("text"), sent) if sent else part[said]
    if not sent:
        yield "response.content_part.added", {"part": {**part, said: "", **{name: [] for name in logprobs}}}
    if rest or not sent:
        yield f"response.{kind}.delta", {"delta": rest, **logprobs}
    yield f"response.{kind}.done", {said: part[said], **logprobs}
    yield "response.content_part.done", {"part": part}


def _named(kind: str, content: dict[str, Any]) -> bytes:
    return b"event: %b\n%b" % (kind.encode(), _data(content))


def _data(content: dict[str, Any]) -> bytes:
    """Return an event. JSON has no line breaks, which would begin another line of the event."""
    return b"data: %b\n\n" % to_json(content)
