"""Tools in the shapes of OpenAI's chat completions: functions that a model may call, its choice, and its calls.

Source: OpenAI API reference, "Create chat completion", `tools`, `tool_choice` and `messages[].tool_calls`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, field_validator

from schemas.bounded import WireModel

MAX_TOOLS: Final = 64
"""The maximum number of functions that a job may describe."""
MAX_TOOL_CALLS: Final = 64
"""The maximum number of calls of one message."""

FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
"""A function's name, of characters that every engine accepts."""


def require_json(value: dict[str, Any]) -> dict[str, Any]:
    """Return the value without change. Raises ValueError for NaN and Infinity, which RFC 8259 forbids in JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError("has a value in it that is not JSON") from None
    return value


class ToolFunction(WireModel):
    """A function that the model may call."""

    name: FunctionName
    """The function's name."""
    description: str | None = None
    """The function's purpose, in words for the model."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """The JSON Schema of the function's arguments; if it is empty, the function has no arguments."""
    strict: bool | None = None
    """OpenAI's flag, passed on to a server: if true, the arguments follow the schema."""

    _is_json = field_validator("parameters")(require_json)


class Tool(WireModel):
    """A tool of a job; the only kind is a function."""

    type: Literal["function"]
    """The kind of tool."""
    function: ToolFunction
    """The function."""


class ChosenFunction(WireModel):
    """The name of one function."""

    name: FunctionName
    """The name of one of the job's functions."""


class NamedTool(WireModel):
    """The choice of one function, which the model has to call."""

    type: Literal["function"]
    """The kind of tool."""
    function: ChosenFunction
    """The function."""


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class CalledFunction(WireModel):
    """A call's function, with its arguments."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """The function's name, as the model wrote it."""
    arguments: str
    """The arguments: a JSON object by the function's schema, unless the call is cut off.

    The model wrote the arguments: check their values before use.
    """


class ToolCall(WireModel):
    """A call that the model asks for."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    """The call's name within the conversation; a message of the role `tool` repeats it."""
    type: Literal["function"] = "function"
    """The kind of tool."""
    function: CalledFunction
    """The function and its arguments."""
