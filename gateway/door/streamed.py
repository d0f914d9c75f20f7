"""Answers as streams: the whole answer in the events that OpenAI's SDKs read, once the answer is there.

While a job runs, the stream carries comments, which keep the connection open. The head of the response waits a moment
for the answer, so that a refusal that comes soon has its own status.
Sources: OpenAI's API reference, "Streaming" of chat completions and of responses; WHATWG HTML, "Server-sent events".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Any

from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from gateway.door.routes.events import HEADERS, stream_part
from gateway.errors import ApiError
from schemas.result import Result

HEAD_SECONDS = 2.0
_KEEP_ALIVE = b": waiting for the answer\n\n"
DONE = b"data: [DONE]\n\n"

Events = Callable[[Result], Awaitable[list[bytes]]]


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


class AnswerStream:
    """A response that ends with its job's answer."""

    def __init__(
        self, answering: asyncio.Task[Result], events: Events, failed: Callable[[ApiError], bytes], seconds: float
    ) -> None:
        """`seconds` is the time between two comments."""
        self._answering = answering
        self._events = events
        self._failed = failed
        self._seconds = seconds

    @classmethod
    async def begun(
        cls, answer: Awaitable[Result], events: Events, failed: Callable[[ApiError], bytes], seconds: float
    ) -> AnswerStream:
        """Wait HEAD_SECONDS for the answer, then return the stream. Raises the error of an answer that came by then."""
        answering = asyncio.ensure_future(answer)
        try:
            await asyncio.wait({answering}, timeout=HEAD_SECONDS)
            if answering.done():
                answering.result()
        except BaseException:
            answering.cancel()
            raise
        return cls(answering, events, failed, seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send comments until the answer is there, then its events."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            while not (await asyncio.wait({self._answering}, timeout=self._seconds))[0]:
                await send(stream_part(_KEEP_ALIVE))
            try:
                events = await self._events(self._answering.result())
            except ApiError as error:
                events = [self._failed(error)]
            await send({"type": "http.response.body", "body": b"".join(events)})
        finally:
            self._answering.cancel()


def chat_events(answer: dict[str, Any], *, with_usage: bool) -> list[bytes]:
    """Return the chunks of a chat completion."""
    base = {name: answer[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    more: dict[str, Any] = {"usage": None} if with_usage else {}

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return _data({**base, **more, "choices": [choice]})

    made = []
    for choice in answer["choices"]:
        message, index = choice["message"], choice["index"]
        made.append(chunk(index, {"role": "assistant", "content": ""}))
        said = {name: message[name] for name in ("content", "reasoning", "reasoning_content") if message.get(name)}
        if calls := message.get("tool_calls"):
            said["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
        if said:
            made.append(chunk(index, said, logprobs=choice["logprobs"]))
        made.append(chunk(index, {}, choice["finish_reason"]))
    last = {**base, "choices": [], "postback": answer["postback"]}
    return [*made, _data(last | ({"usage": answer["usage"]} if with_usage else {})), DONE]


def chat_failed(error: ApiError) -> bytes:
    """Return the event of an answer that failed after the response's head."""
    return _data(error.body) + DONE


def response_events(queued: dict[str, Any], answer: dict[str, Any]) -> list[bytes]:
    """Return the events of a response: `queued` is its object before the answer."""
    numbers = count()

    def event(kind: str, **members: Any) -> bytes:
        return _named(kind, {"type": kind, "sequence_number": next(numbers), **members})

    begun = {**queued, "status": "in_progress"}
    made = [event("response.created", response=begun), event("response.in_progress", response=begun)]
    for place, item in enumerate(answer["output"]):
        at = {"output_index": place, "item_id": item["id"]}
        empty = {**item, "status": "in_progress"} | {name: blank for name, blank in _BLANK.items() if name in item}
        made.append(event("response.output_item.added", output_index=place, item=empty))
        made += (event(kind, **at, **members) for kind, members in _parts(item))
        made.append(event("response.output_item.done", output_index=place, item=item))
    made.append(event(f"response.{answer['status']}", response=answer))
    return made


_BLANK: dict[str, Any] = {"content": [], "arguments": ""}


def _parts(item: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events between an item's begin and its end."""
    if item["type"] == "function_call":
        yield "response.function_call_arguments.delta", {"delta": item["arguments"]}
        yield "response.function_call_arguments.done", {"arguments": item["arguments"], "name": item["name"]}
    elif item["type"] == "message":
        for index, part in enumerate(item["content"]):
            at = {"content_index": index}
            yield "response.content_part.added", {**at, "part": {**part, "text": "", "logprobs": []}}
            yield "response.output_text.delta", {**at, "delta": part["text"], "logprobs": part["logprobs"]}
            yield "response.output_text.done", {**at, "text": part["text"], "logprobs": part["logprobs"]}
            yield "response.content_part.done", {**at, "part": part}


def response_failed(error: ApiError) -> bytes:
    """Return the event of a response that failed after the response's head."""
    said = {"type": "error", "code": error.code, "message": error.message, "param": error.param, "sequence_number": 0}
    return _named("error", said)


def _named(kind: str, content: dict[str, Any]) -> bytes:
    return b"event: %b\n%b" % (kind.encode(), _data(content))


def _data(content: dict[str, Any]) -> bytes:
    """Return an event. JSON has no line breaks, which would begin another line of the event."""
    return b"data: %b\n\n" % to_json(content)
