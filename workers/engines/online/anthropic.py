"""Anthropic's Messages API (`POST /v1/messages`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import StringIO
from typing import Any, ClassVar
from urllib.parse import quote

from pydantic import Field
from pydantic_core import from_json

from schemas.bounded import BoundedModel
from schemas.tools import MAX_TOOL_CALLS, CalledFunction, ToolCall
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.base import (
    Completion,
    GenerationRequest,
    RequestRejected,
    TokenCount,
    arguments_of,
    inline,
    named_tool,
    with_calls,
    with_refusal,
)
from workers.engines.body import Body, text_of
from workers.engines.finish import finish_reason, is_refusal
from workers.engines.online.turns import Turn, options_of, parted
from workers.engines.openai_http.engine import HttpEngine
from workers.engines.openai_http.server import OF_ACCOUNTS, ModelServer, Usage
from workers.engines.openai_http.settings import RemoteSettings
from workers.engines.openai_http.stream import AnswerStream

_MOST_BLOCKS = 4096
_VERSION = "2023-06-01"
_OF_A_TOOL = ("name", "description")
_EFFORTS = {"minimal": "low", "xhigh": "max"}
"""Maps a job's word for an effort to the service's word, if the two words differ."""


class AnthropicSettings(RemoteSettings):
    """Settings of Anthropic's Messages API."""

    base_url: str = Field(default="https://api.anthropic.com/v1", pattern=r"^https?://[^\s]+$")
    """The service's URL, with the version of its API."""


class _Block(BoundedModel):
    type: str
    text: str = ""
    thinking: str = ""
    """The reasoning, in blocks of the type `thinking`; a block `redacted_thinking` hides the reasoning."""
    id: str = Field(default="", max_length=256)
    name: str = Field(default="", max_length=256)
    input: dict[str, Any] | None = None
    """The arguments of the call, in blocks of the type `tool_use`."""


class _AnthropicUsage(Usage):
    cache_creation_input_tokens: TokenCount | None = None
    cache_read_input_tokens: TokenCount | None = None


class _StopDetails(BoundedModel):
    explanation: str | None = None


class AnthropicAnswer(BoundedModel):
    """The fields of a message that this engine reads."""

    content: list[_Block] = Field(max_length=_MOST_BLOCKS)
    stop_reason: str
    stop_details: _StopDetails | None = None
    usage: _AnthropicUsage


class _Delta(BoundedModel):
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_details: dict[str, Any] | None = None

    @property
    def piece(self) -> str:
        """The next piece of the block; each kind of delta has one member."""
        return self.text or self.thinking or self.partial_json


class _Start(BoundedModel):
    usage: dict[str, Any] = Field(default_factory=dict)


class _Event(BoundedModel):
    type: str
    index: int = 0
    message: _Start = _Start()
    content_block: _Block | None = None
    delta: _Delta = _Delta()
    usage: dict[str, Any] = Field(default_factory=dict)


class AnthropicStream(AnswerStream):
    """The events of a message: its blocks grow one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks: dict[int, tuple[_Block, StringIO]] = {}
        self._end: Body = {}
        self._usage: Body = {}

    def take(self, event: bytes) -> None:
        """Take an event; see `AnswerStream`."""
        said = _Event.model_validate_json(event)
        delta, piece = said.delta, said.delta.piece
        self._usage |= said.message.usage | said.usage
        if said.content_block is not None and len(self._blocks) <= _MOST_BLOCKS:
            self._blocks[said.index] = said.content_block, StringIO()
        if piece:
            if said.index not in self._blocks:
                raise ValueError("has no such block")
            block, grown = self._blocks[said.index]
            grown.write(piece)
            self.size += len(piece)
            self._text.write(piece if block.type == "text" else "")
        if delta.stop_reason is not None:
            self._end = {"stop_reason": delta.stop_reason, "stop_details": delta.stop_details}
        self.is_whole = self.is_whole or said.type == "message_stop"

    def plain(self) -> Body:
        """Return the message. Raises ValueError for arguments of a call that are no JSON."""
        return {"content": [_whole(*block) for block in self._blocks.values()], "usage": self._usage, **self._end}


def _whole(block: _Block, grown: StringIO) -> Body:
    said = grown.getvalue()
    match block.type:
        case "text" | "thinking":
            return {"type": block.type, block.type: getattr(block, block.type) + said}
        case "tool_use":
            return {**block.model_dump(), "input": from_json(said) if said else block.input}
    return {"type": block.type}


class AnthropicModel(BoundedModel):
    """The answer to `GET /v1/models/{id}`."""

    id: str
    max_input_tokens: int | None = Field(default=None, ge=1)


class AnthropicServer(ModelServer):
    """Anthropic's Messages API."""

    settings: AnthropicSettings
    kind = "anthropic"
    generation_path = "messages"
    account_texts = OF_ACCOUNTS
    parameters: ClassVar[Mapping[str, str]] = {"output_config": "response_format"}

    def __init__(self, settings: AnthropicSettings, clock: Clock) -> None:
        super().__init__(settings, clock)
        self.model_path = f"models/{quote(self.model, safe='')}"

    def headers(self, key: str) -> dict[str, str]:
        """Return the key and the API's version."""
        return {"x-api-key": key, "anthropic-version": _VERSION}

    def body(self, request: GenerationRequest) -> Body:
        """Return the JSON of a message request.

        Raises RequestRejected for a raw prompt, or a temperature above 1.
        """
        system, turns = parted(request)
        body: Body = {
            "model": self.model,
            "max_tokens": request.max_tokens,
            "messages": [{"role": turn.role, "content": _content(turn)} for turn in turns],
            **_tools(request),
            **_reasoning(request),
        }
        if system:
            body["system"] = system
        body |= self.temperature(request)
        if body.get("temperature", 0) > 1:
            raise RequestRejected("temperature", "this service takes values from 0 to 1")
        body |= options_of("anthropic", request)
        form = request.response_format
        if form is not None and "json_schema" in form:
            schema = {"type": "json_schema", "schema": form["json_schema"]["schema"]}
            body["output_config"] = body.get("output_config", {}) | {"format": schema}
        return body

    def stream(self, request: GenerationRequest) -> AnthropicStream:
        """Return the reader of the events."""
        return AnthropicStream()

    def completion(self, body: bytes, request: GenerationRequest) -> Completion:
        """Return the message's text blocks as one text. Raises ValidationError."""
        answer = AnthropicAnswer.model_validate_json(body)
        usage = answer.usage
        cached = usage.cache_read_input_tokens
        prompt_tokens = usage.prompt_tokens + (usage.cache_creation_input_tokens or 0) + (cached or 0)
        text = "".join(block.text for block in answer.content if block.type == "text")
        thoughts = "".join(block.thinking for block in answer.content if block.type == "thinking")
        reason = finish_reason(answer.stop_reason)
        completion = Completion(
            text, reason, prompt_tokens, usage.completion_tokens, reasoning=thoughts or None, cached_tokens=cached
        )
        if is_refusal(answer.stop_reason):  # the text before a refusal is not an answer
            return with_refusal(completion, answer.stop_details.explanation if answer.stop_details else None)
        called = [block for block in answer.content if block.type == "tool_use"][:MAX_TOOL_CALLS]
        return with_calls(completion, [_call(block) for block in called]) if "tools" in request.body else completion

    def window_in(self, body: bytes) -> int | None:
        """Return the largest number of tokens of a prompt; None if the description has no number.

        Raises ValidationError.
        """
        return AnthropicModel.model_validate_json(body).max_input_tokens


def _call(block: _Block) -> ToolCall:
    arguments = json.dumps(block.input or {}, ensure_ascii=False)
    return ToolCall(id=block.id, function=CalledFunction(name=block.name, arguments=arguments))


def _content(turn: Turn) -> str | list[Body]:
    """Return a turn's content: a text, or blocks for images, tool calls and tool results. Raises RequestRejected."""
    return turn.text if turn.is_text else [*map(_block, turn.pieces)]


def _block(piece: Body) -> Body:
    if piece["type"] == "tool":
        return {"type": "tool_result", "tool_use_id": piece["tool_call_id"], "content": text_of(piece)}
    if piece["type"] == "function":
        return {"type": "tool_use", "id": piece["id"], "name": piece["function"]["name"], "input": arguments_of(piece)}
    if piece["type"] == "text":
        return piece
    media_type, data = inline(piece["image_url"])
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _tools(request: GenerationRequest) -> Body:
    """Return the parameters for tools; `any` is the service's word for `required`."""
    if "tools" not in request.body:
        return {}
    tools = []
    for function in (tool["function"] for tool in request.body["tools"]):
        schema = {"type": "object", **function["parameters"]}
        tools.append({**{name: function[name] for name in _OF_A_TOOL if name in function}, "input_schema": schema})
    asked = request.tool_choice or "auto"
    if (name := named_tool(asked)) is not None:
        choice: Body = {"type": "tool", "name": name}
    else:
        choice = {"type": "any" if asked == "required" else asked}
    if request.body.get("parallel_tool_calls") is False and asked != "none":
        choice["disable_parallel_tool_use"] = True
    return {"tools": tools, "tool_choice": choice}


def _reasoning(request: GenerationRequest) -> Body:
    """Return the parameters for the effort and for the token budget. A token budget must be at least 1,024."""
    if request.reasons is False:
        return {"thinking": {"type": "disabled"}}
    effort, budget = request.body.get("reasoning_effort"), request.body.get("thinking_token_budget")
    fields: Body = {}
    if budget is not None:
        fields["thinking"] = {"type": "enabled", "budget_tokens": budget}
    if effort is not None:
        fields["output_config"] = {"effort": _EFFORTS.get(effort, effort)}
    return fields


Settings = AnthropicSettings


def create(settings: AnthropicSettings, metrics: Metrics, clock: Clock) -> HttpEngine:
    """Make the engine of a worker; see `EngineModule`."""
    return HttpEngine(AnthropicServer(settings, clock), metrics)
