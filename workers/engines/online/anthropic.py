"""Anthropic's Messages API (`POST /v1/messages`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from schemas.bounded import BoundedModel
from workers.engines.answers import Answer, Usage, is_refusal
from workers.engines.base import (
    REFUSED,
    GenerationRequest,
    RequestRejected,
    arguments_of,
    inline,
    named_tool,
)
from workers.engines.body import Body, text_of
from workers.engines.online.turns import Turn, options_of, parted
from workers.engines.openai_http.engine import engine_of
from workers.engines.openai_http.server import OF_ACCOUNTS, ModelServer
from workers.engines.openai_http.settings import RemoteSettings

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
    """A block, or the next piece of one. Each type has its own members."""

    type: str = ""
    text: str = ""
    thinking: str = ""
    """The reasoning; a block `redacted_thinking` hides it."""
    id: str = Field(default="", max_length=256)
    name: str = Field(default="", max_length=256)
    input: dict[str, Any] | None = None
    """The arguments of a call. In a stream they are empty first, and come as pieces of JSON."""
    partial_json: str = ""


class _StopDetails(BoundedModel):
    explanation: str | None = None


class _Delta(_Block):
    """The next piece of a block, or the end of the message."""

    stop_reason: str | None = None
    stop_details: _StopDetails | None = None


class _Start(BoundedModel):
    usage: Usage | None = None


class _Document(_Start):
    """A message, or an event of a stream."""

    type: str
    content: list[_Block] = Field(default_factory=list, max_length=_MOST_BLOCKS)
    stop_reason: str | None = None
    stop_details: _StopDetails | None = None
    index: int = 0
    message: _Start = _Start()
    content_block: _Block | None = None
    delta: _Delta | None = None


class AnthropicServer(ModelServer):
    """Anthropic's Messages API."""

    settings: AnthropicSettings
    kind = "anthropic"
    model_path = "models/{model}"
    describes_model = True
    generation_path = "messages"
    account_texts = OF_ACCOUNTS
    parameters: ClassVar[Mapping[str, str]] = {"output_config": "response_format"}

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
        if request.body.get("temperature", 0) > 1:
            raise RequestRejected("temperature", "this service takes values from 0 to 1")
        body |= options_of("anthropic", request)
        form = request.response_format
        if form is not None and "json_schema" in form:
            schema = {"type": "json_schema", "schema": form["json_schema"]["schema"]}
            body["output_config"] = body.get("output_config", {}) | {"format": schema}
        return body

    def answer(self, request: GenerationRequest) -> Answer:
        """Return an answer whose calls without arguments have an empty object, as in plain answers."""
        return Answer(request, no_reason="unknown", no_arguments="{}")

    def read(self, document: bytes, answer: Answer) -> None:
        """Add a message, whose blocks of text are one text, or an event to the answer. Raises ValidationError."""
        read, choice = _Document.model_validate_json(document), answer.choice()
        growing = ((read.index, block) for block in (read.content_block, read.delta) if block is not None)
        for index, block in (*enumerate(read.content), *growing):
            match block.type:
                case "text" | "text_delta":
                    choice.say(block.text)
                case "thinking" | "thinking_delta":
                    choice.think(block.thinking)
                case "tool_use" | "input_json_delta":
                    choice.call(block.name, block.partial_json or block.input or "", block.id, index)
        answer.count(read.usage or read.message.usage)
        end = read.delta or read
        if is_refusal(end.stop_reason):  # the text before a refusal is not an answer
            choice.refuse((end.stop_details.explanation if end.stop_details is not None else None) or REFUSED)
        choice.end(end.stop_reason)
        answer.is_whole = answer.is_whole or read.type == "message_stop"


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

create = engine_of(AnthropicServer)
