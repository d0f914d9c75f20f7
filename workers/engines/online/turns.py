"""A request's messages as turns, for an API that takes the system text separately from the chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from schemas.job import ImagePart, Message, TextPart
from schemas.tools import ToolCall
from workers.engines.base import GenerationRequest, RequestRejected, named, require_question


@dataclass(frozen=True, slots=True)
class Turn:
    """Messages of one speaker in a row. A tool's return value is part of a user's turn, as both services require."""

    role: str
    """`user` or `assistant`."""
    messages: Sequence[Message]

    @property
    def text(self) -> str:
        """The texts of the messages as one text."""
        return "\n\n".join(message.text for message in self.messages)

    @property
    def is_text(self) -> bool:
        """True if no message has images, tool calls or tool results."""
        return not any(message.images or message.tool_calls or message.role == "tool" for message in self.messages)

    @property
    def pieces(self) -> Iterator[TextPart | ImagePart | ToolCall | Message]:
        """Texts, images and calls in their order; a tool's return value is a whole message. Empty texts are left out.

        Both services refuse an empty text.
        """
        for message in self.messages:
            if message.role == "tool":
                yield message
            elif message.images:
                yield from (part for part in message.parts if isinstance(part, ImagePart) or part.text)
            elif message.text:
                yield TextPart(type="text", text=message.text)
            yield from message.tool_calls or ()


def parted(request: GenerationRequest) -> tuple[str, list[Turn]]:
    """Return the system text, and the turns of user and assistant. Messages of one speaker in a row become one turn.

    A chat that has only system messages becomes one turn of the user, because the APIs refuse a chat without a turn.
    Raises RequestRejected for a raw prompt, and for a request without a question.
    """
    require_chat(request)
    if request.messages is None:
        return "", [_of_the_user(request.prompt or "")]
    system = "\n\n".join(message.text for message in request.messages if _is_system(message))
    others = [message for message in request.messages if not _is_system(message)]
    if not others:
        return "", [_of_the_user(system)]
    return system, [Turn(role, [*group]) for role, group in groupby(others, _role)]


def options_of(kind: str, request: GenerationRequest) -> dict[str, Any]:
    """Return the sampling fields that this service takes. Its newer models refuse a `top_p` that changes nothing."""
    changed = {name: value for name, value in request.sampling.items() if (name, value) != ("top_p", 1.0)}
    return named(kind, replace(request, sampling=changed))


def require_chat(request: GenerationRequest) -> None:
    """Raise RequestRejected for a raw prompt, and for a request without a question."""
    require_question(request)
    if request.is_raw:
        raise RequestRejected("raw", "this service answers chats only")


def _of_the_user(text: str) -> Turn:
    return Turn("user", [Message(role="user", content=text)])


def _is_system(message: Message) -> bool:
    return message.role in ("system", "developer")


def _role(message: Message) -> str:
    return "assistant" if message.role == "assistant" else "user"
