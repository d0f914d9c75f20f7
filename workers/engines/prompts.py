"""Prompt handling that all engines share: a prompt's text, and the number of tokens that fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from schemas.job import Job, Message
from schemas.tools import ToolCall
from workers.engines.base import GenerationRequest, RequestRejected

_SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def plain_text(messages: Sequence[Message]) -> str:
    """Return messages as text, for a model without a chat template.

    A single message becomes its text without a role.
    """
    if len(messages) == 1:
        return messages[0].text
    turns = [f"{_SPEAKERS[message.role]}: {message.text}" for message in messages]
    return "\n\n".join([*turns, "Assistant:"])


def last_user_text(asked: GenerationRequest | Job) -> str:
    """Return the question: the prompt, else the user's last message, else the last message of any role."""
    if asked.prompt is not None:
        return asked.prompt
    messages = asked.messages or ()
    by_user = [message.text for message in messages if message.role == "user"]
    return by_user[-1] if by_user else messages[-1].text


def prompt_room(request: GenerationRequest, max_model_len: int | None) -> int | None:
    """Return the number of tokens that the prompt may have beside the answer; None means no limit.

    Raises RequestRejected if not even one token fits.
    """
    limits = [limit for limit in (request.context_window, max_model_len) if limit is not None]
    if not limits:
        return None
    window = min(limits)
    if window > request.max_tokens:
        return window - request.max_tokens
    if request.context_window is not None and request.context_window == window:
        raise RequestRejected("context_window", f"{window} tokens leave no room for a prompt beside max_tokens")
    raise RequestRejected("max_tokens", f"leaves no room for a prompt in the {window} tokens of this model")


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """Return the arguments of a call in the chat, as an object. Raises RequestRejected for a text that is no object."""
    try:
        arguments = from_json(call.function.arguments or "{}", allow_inf_nan=False)
    except ValueError:  # also raised for deep nesting, and for lone surrogates, which no tokenizer takes
        arguments = None
    if not isinstance(arguments, dict):
        raise RequestRejected("messages", "`arguments` of a call in `tool_calls` must be a JSON object")
    return arguments
