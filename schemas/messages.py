"""Chat messages in OpenAI's shape, with the calls of tools and the answers of those calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, StringConstraints, model_validator

from schemas.bounded import WireModel
from schemas.tools import MAX_TOOL_CALLS, ToolCall


class TextPart(WireModel):
    """A part of a chat message. Text only: the engine itself would fetch an `image_url`, past the egress guard."""

    type: Literal["text"]
    """The kind of part."""
    text: str
    """The part's text."""


_NULL: dict[str, JsonValue] = {"type": "null"}
_SAID: dict[str, JsonValue] = {"content": {"type": ["string", "array"]}}
_MESSAGE_FORMS: list[JsonValue] = [
    {
        "required": ["content"],
        "properties": {**_SAID, "role": {"not": {"const": "tool"}}, "tool_calls": _NULL, "tool_call_id": _NULL},
    },
    {
        "required": ["tool_calls"],
        "properties": {"role": {"const": "assistant"}, "tool_calls": {"type": "array"}, "tool_call_id": _NULL},
    },
    {
        "required": ["content", "tool_call_id"],
        "properties": {
            **_SAID,
            "role": {"const": "tool"},
            "tool_calls": _NULL,
            "tool_call_id": {"type": "string"},
        },
    },
]
"""Message's validator as JSON Schema."""


class Message(WireModel):
    """One chat message in OpenAI's shape."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _MESSAGE_FORMS})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """The author of the message; `tool` for the answer of a called tool."""
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = None
    """The message as one text or as text parts, which are joined by line breaks.

    Only an assistant's message with `tool_calls` may have no content.
    """
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=MAX_TOOL_CALLS)] | None = None
    """The calls of an assistant's message, as an earlier result has them."""
    tool_call_id: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """The `id` of the call that a message of the role `tool` answers."""

    @model_validator(mode="after")
    def _calls_go_with_their_roles(self) -> Self:
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("`tool_calls` goes with the role `assistant`")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("`tool_call_id` is required with the role `tool`, and only there")
        if self.content is None and self.tool_calls is None:
            raise ValueError("`content` is required; only an assistant's message with `tool_calls` may have none")
        return self

    @property
    def parts(self) -> Sequence[TextPart]:
        """The parts of the content; empty for one text and without a content."""
        return () if self.content is None or isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        """The content as one string; empty without a content."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.parts)
