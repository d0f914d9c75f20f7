"""Tools in the shapes of OpenAI's Responses API, converted to those of chat completions, and calls converted back.

Source: OpenAI API reference, "Create a model response": `tools`, `tool_choice`, and the items `function_call` and
`function_call_output`. A value of any other shape stays unchanged, so that the job's own check refuses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.tools import ToolCall

_MEMBERS = ("name", "description", "parameters", "strict")


def response_tools(tools: object) -> object:
    """Return the tools of a Responses body with their members one level deeper, as chat completions have them."""
    return [_nested(tool) for tool in tools] if isinstance(tools, list) else tools


def response_choice(choice: object) -> object:
    """Return the `tool_choice` of a Responses body in the form that chat completions have."""
    return _nested(choice) if isinstance(choice, dict) else choice


def called_message(item: object) -> dict[str, Any] | None:
    """Return a call, or the output of a called function, as a chat message; None for any other item."""
    if not isinstance(item, dict):
        return None
    if item.get("type") == "function_call":
        function = {name: item.get(name) for name in ("name", "arguments")}
        return {"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "function": function}]}
    if item.get("type") == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    return None


def response_place(path: Sequence[str]) -> list[str]:
    """Translate a place in a job to the place in a Responses body.

    In that body, tools, calls and images have their members one level higher.
    """
    if [*path[4:5]] == ["image_url"]:
        return [*path[:4], "detail" if [*path[5:]] == ["detail"] else "image_url"]
    if [*path[2:4]] == ["tool_calls", "0"]:
        path = [*path[:2], *path[4:]]
    elif [*path[2:]] == ["tool_call_id"]:
        return [*path[:2], "call_id"]
    elif path[0] not in ("tools", "tool_choice"):
        return [*path]
    return ["call_id" if part == "id" else part for part in path if part != "function"]


def call_items(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """Return calls as items of a Response's output."""
    return [
        {
            "type": "function_call",
            "id": f"fc_{call.id}",
            "call_id": call.id,
            "name": call.function.name,
            "arguments": call.function.arguments,
            "status": "completed",
        }
        for call in calls
    ]


def _nested(tool: object) -> object:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    return {"type": "function", "function": {name: tool[name] for name in _MEMBERS if tool.get(name) is not None}}
