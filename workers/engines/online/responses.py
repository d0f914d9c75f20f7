"""OpenAI's Responses API (`POST /v1/responses`), without storage at the service.

Items and parts whose type this module does not know are left out, because newer versions of the API add types.

Source: OpenAI API reference, "Create a model response" and "The response object".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from schemas.bounded import BoundedModel
from schemas.job import MAX_TOKENS
from schemas.tools import MAX_TOOL_CALLS
from workers.engines.answers import Answer, Token, Usage, finish_reason
from workers.engines.base import (
    REFUSED,
    EngineFailed,
    EngineUnavailable,
    GenerationRequest,
    RequestRejected,
    inline,
    named_tool,
)
from workers.engines.body import Body, parts_of, passed, text_of
from workers.engines.online.turns import options_of, require_chat
from workers.engines.openai_http.engine import engine_of
from workers.engines.openai_http.server import DONE, MAX_REASON_CHARACTERS, OF_ACCOUNTS, ModelServer
from workers.engines.openai_http.settings import RemoteSettings

_LOGPROBS: Final = "message.output_text.logprobs"


class ResponsesSettings(RemoteSettings):
    """Settings of OpenAI's Responses API."""

    base_url: str = Field(default="https://api.openai.com/v1", pattern=r"^https?://[^\s]+$")
    """The service's URL, with the version of its API."""
    reasoning_summary: Literal["auto", "concise", "detailed"] | None = None
    """The kind of reasoning summary to ask for; if absent, results have no reasoning.

    OpenAI gives summaries to verified organizations only, and only its reasoning models take this parameter.
    """


class ResponsesServer(ModelServer):
    """OpenAI's Responses API."""

    settings: ResponsesSettings
    kind = "responses"
    generation_path = "responses"
    account_texts = OF_ACCOUNTS

    def body(self, request: GenerationRequest) -> Body:
        """Return the JSON of a request for a response.

        The API takes no stop texts, so the request leaves them out and `completion` cuts the text. Raises
        RequestRejected for a raw prompt, or a bound on the tokens of the reasoning.
        """
        require_chat(request)
        body: Body = {
            "model": self.model,
            "input": [item for message in request.messages for item in _items(message)],
            "store": False,
            **passed("responses", request.body, "max_tokens", "top_logprobs"),
        }
        body |= {name: value for name, value in options_of("responses", request).items() if name != "stop"}
        if reasoning := self._reasoning(request):
            body["reasoning"] = reasoning
        if request.response_format is not None:
            body["text"] = {"format": _format(request.response_format)}
        if "tools" in request.body:
            body |= _tools(request)
        if request.top_logprobs is not None:
            body["include"] = [_LOGPROBS]
        return body

    def read(self, document: bytes, answer: Answer) -> None:
        """Add a response, or an event of a stream, to the answer. The last event has the whole response.

        Raises EngineError if the service reports that it failed, and ValueError for a document of another form.
        """
        if document == DONE:
            return
        event = _Event.model_validate_json(document)
        if event.type is None:
            _read_response(ResponsesAnswer.model_validate_json(document), answer)
        elif event.type == "error":
            _read_failure(_Error(code=event.code, message=event.message), answer)
        elif event.type in _LAST_EVENTS and event.response is not None:
            answer.choices.clear()
            _read_response(event.response, answer)
            answer.is_whole = True
        elif event.item is not None and event.item.type == "message" and event.item.phase != "commentary":
            answer.choices.setdefault(0, answer.choice(event.output_index))
        elif event.type == "response.output_text.delta" and event.output_index in answer.choices:
            # a stop text may still cut the text that ends now
            answer.choice(event.output_index).say(str(event.delta) if "stop" not in answer.request.body else "")

    def _reasoning(self, request: GenerationRequest) -> Body:
        """Return the options of the reasoning; no options if the model decides about its reasoning.

        Raises RequestRejected.
        """
        if request.reasons is False:
            return {"effort": "none"}
        if "thinking_token_budget" in request.body:
            raise RequestRejected("reasoning.max_tokens", "this service has no such bound; set `reasoning.effort`")
        options = {"effort": request.body.get("reasoning_effort"), "summary": self.settings.reasoning_summary}
        return {name: value for name, value in options.items() if value is not None}


def _items(message: Body) -> list[Body]:
    """Return a message as items of the input: the message itself, its calls, or a call's output."""
    if message["role"] == "tool":
        return [{"type": "function_call_output", "call_id": message["tool_call_id"], "output": text_of(message)}]
    items: list[Body] = []
    calls = message.get("tool_calls", ())
    if parts := parts_of(message):
        said = [_part(part) for part in parts if part["type"] != "text" or part["text"]]
        items.append({"type": "message", "role": message["role"], "content": said})
    elif message["content"] or not calls:
        items.append({"type": "message", "role": message["role"], "content": text_of(message)})
    return items + [{"type": "function_call", "call_id": call["id"], **call["function"]} for call in calls]


def _part(part: Body) -> Body:
    """Return a part of a user's message. Raises RequestRejected for a URL that the service would fetch."""
    if part["type"] == "text":
        return {"type": "input_text", "text": part["text"]}
    image = part["image_url"]
    inline(image)
    return {"type": "input_image", "image_url": image["url"], "detail": image.get("detail", "auto")}


def _format(form: Body) -> Body:
    """Return the form of the answer; the fields of `json_schema` are one level higher than in chat completions."""
    return {"type": form["type"], **form.get("json_schema", {})}


def _tools(request: GenerationRequest) -> Body:
    """Return the parameters for tools, which have their members one level higher than in chat completions.

    `strict` is always sent, because this API is strict by default, unlike chat completions. The service refuses an
    object without `properties`.
    """
    tools = []
    for function in (tool["function"] for tool in request.body["tools"]):
        schema = {"type": "object", "properties": {}, **function["parameters"]}
        tools.append({"type": "function", "strict": False, **function, "parameters": schema})
    name = named_tool(request.tool_choice)
    fields = passed("responses", request.body, "tool_choice", "parallel_tool_calls")
    return fields | {"tools": tools} | ({"tool_choice": {"type": "function", "name": name}} if name else {})


# -- Answers --
_MOST_ITEMS: Final = 1024
_MOST_PARTS: Final = 128
"""Cap on the parts of an item.

Without the caps on items and parts, 8 MiB of JSON would take half a gigabyte of memory, and block the event loop for
seconds.
"""
_KNOWN: Final = frozenset(
    ("message", "reasoning", "function_call", "output_text", "refusal", "summary_text", "reasoning_text")
)
_LAST_EVENTS: Final = frozenset(("response.completed", "response.incomplete", "response.failed"))
_OF_THE_ACCOUNT: Final = frozenset(("insufficient_quota", "rate_limit_exceeded"))
"""Codes of failures that no job causes. Such a failure is not counted as a failed try of the job."""


def _unknown(kind: str) -> str:
    """Return the type if this module does not know it. Raises ValueError for a known type.

    Only parts of unknown types are left out; a part of a known type must have the form that the API describes.
    """
    if kind in _KNOWN:
        raise ValueError("has another form than the API describes")
    return kind


class _Other(BoundedModel):
    """An item or a part of a newer version of the API."""

    type: Annotated[str, AfterValidator(_unknown)]


class _Text(BoundedModel):
    type: Literal["output_text", "summary_text", "reasoning_text"]
    text: str
    logprobs: list[Token] | None = Field(default=None, max_length=MAX_TOKENS)


class _Refusal(BoundedModel):
    type: Literal["refusal"]
    refusal: str = ""


_Parts = Annotated[
    list[Annotated[_Text | _Refusal | _Other, Field(union_mode="left_to_right")]], Field(max_length=_MOST_PARTS)
]


class _Message(BoundedModel):
    type: Literal["message"]
    content: _Parts
    phase: str | None = None
    """`commentary` marks a remark before the answer, such as the announcement of a call."""


class _Thought(BoundedModel):
    type: Literal["reasoning"]
    summary: _Parts = Field(default_factory=list)
    content: _Parts | None = None
    """The reasoning itself, not its summary; servers of open models send it."""


class _Call(BoundedModel):
    type: Literal["function_call"]
    call_id: str | None = None
    name: str
    arguments: str = ""


class _Error(BoundedModel):
    code: str | None = None
    message: str | None = None


class _Incomplete(BoundedModel):
    reason: str | None = None


class ResponsesAnswer(BoundedModel):
    """The fields of a response that this engine reads."""

    status: str
    output: list[Annotated[_Message | _Thought | _Call | _Other, Field(union_mode="left_to_right")]] = Field(
        max_length=_MOST_ITEMS
    )
    error: _Error | None = None
    incomplete_details: _Incomplete | None = None
    usage: Usage | None = None

    @property
    def messages(self) -> Sequence[_Message]:
        """The messages of the answer, without commentaries; all messages if each is a commentary."""
        messages = [item for item in self.output if isinstance(item, _Message)]
        return [message for message in messages if message.phase != "commentary"] or messages

    @property
    def end(self) -> str:
        """The reason why the generation ended: the status, or the reason that an incomplete response gives."""
        if self.status == "incomplete" and self.incomplete_details is not None and self.incomplete_details.reason:
            return self.incomplete_details.reason
        return self.status


class _Item(BoundedModel):
    type: str
    phase: str | None = None


class _Event(BoundedModel):
    type: str | None = None
    """None for a plain response."""
    output_index: int = 0
    item: _Item | None = None
    delta: Any = None
    response: ResponsesAnswer | None = None
    code: str | None = None
    message: str | None = None


def _read_response(read: ResponsesAnswer, answer: Answer) -> None:
    """Add a response to the answer: its text up to a stop text, its reasoning and its calls. Raises EngineError."""
    choice, request = answer.choice(), answer.request
    answer.count(read.usage)
    if read.status == "failed":
        _read_failure(read.error or _Error(), answer)
        return
    said = [part for message in read.messages for part in message.content]
    parts = [part for part in said if isinstance(part, _Text)]
    refusals = [part.refusal for part in said if isinstance(part, _Refusal)]
    whole = "".join(part.text for part in parts)
    text = min((whole.partition(stop)[0] for stop in request.body.get("stop", ())), key=len, default=whole)
    is_cut = len(text) < len(whole) and finish_reason(read.end) == "length"
    choice.end("stop" if is_cut else read.end)
    choice.think(_reasoning(read))
    if refusals:
        choice.refuse("".join(refusals) or REFUSED)
    else:
        choice.say(text)
    for item in read.output:
        if isinstance(item, _Call) and len(choice.calls) < MAX_TOOL_CALLS:
            choice.call(item.name, item.arguments, item.call_id or "")
    for part in parts if request.top_logprobs is not None else ():
        if part.logprobs is not None:  # a stop text cuts the answer's text, but not this list
            choice.likely(part.logprobs)


def _read_failure(error: _Error, answer: Answer) -> None:
    """Note that the service's policy withheld the answer; raise the EngineError of any other failure."""
    code = error.code or ""
    if "policy" in code:
        answer.choice().end("content_filter")
        answer.is_whole = True
        return
    if code == "invalid_prompt" or "image" in code:
        reason = " ".join((error.message or "").split())[:MAX_REASON_CHARACTERS]
        raise RequestRejected(answer.request.asked_in, reason or "the service refuses the input")
    if code in _OF_THE_ACCOUNT:
        raise EngineUnavailable(f"the service failed with the code {code}")
    raise EngineFailed("the service failed while it generated", wasted_tokens=answer.usage.completion_tokens)


def _reasoning(read: ResponsesAnswer) -> str:
    """Return the reasoning itself, or else its summary; empty if the response has neither."""
    thoughts = [item for item in read.output if isinstance(item, _Thought)]
    parts = [part for thought in thoughts for part in (thought.content or thought.summary)]
    return "\n\n".join(part.text for part in parts if isinstance(part, _Text))


Settings = ResponsesSettings

create = engine_of(ResponsesServer)
