"""A request's messages as turns, for an API that takes the system text separately from the chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from workers.engines.base import GenerationRequest, RequestRejected, require_question
from workers.engines.body import SYSTEM_ROLES, Body, parts_of, passed, text_of, user_message


@dataclass(frozen=True, slots=True)
class Turn:
    """Messages of one speaker in a row. A tool's return value is part of a user's turn, as both services require."""

    role: str
    """`user` or `assistant`."""
    messages: Sequence[Body]

    @property
    def text(self) -> str:
        """The texts of the messages as one text."""
        return "\n\n".join(map(text_of, self.messages))

    @property
    def is_text(self) -> bool:
        """True if no message has images, tool calls or tool results."""
        return not any(parts_of(each) or "tool_calls" in each or each["role"] == "tool" for each in self.messages)

    @property
    def pieces(self) -> Iterator[Body]:
        """Texts, images, calls and answers of tools in their order, as parts with a `type`. Empty texts are left out.

        Both services refuse an empty text.
        """
        for message in self.messages:
            if message["role"] == "tool":
                yield {"type": "tool", **message}
            elif parts_of(message):
                yield from (part for part in parts_of(message) if part["type"] != "text" or part["text"])
            elif message["content"]:
                yield {"type": "text", "text": message["content"]}
            yield from message.get("tool_calls", ())


def parted(request: GenerationRequest) -> tuple[str, list[Turn]]:
    """Return the system text, and the turns of user and assistant. Messages of one speaker in a row become one turn.

    A chat that has only system messages becomes one turn of the user, because the APIs refuse a chat without a turn.
    Raises RequestRejected for a raw prompt, and for a request without a question.
    """
    require_chat(request)
    system = "\n\n".join(text_of(message) for message in request.messages if message["role"] in SYSTEM_ROLES)
    others = [message for message in request.messages if message["role"] not in SYSTEM_ROLES]
    if not others:
        return "", [Turn("user", [user_message(system)])]
    return system, [Turn(role, [*group]) for role, group in groupby(others, _role)]


def options_of(kind: str, request: GenerationRequest) -> Body:
    """Return the sampling members that this service takes. Its newer models refuse a `top_p` that changes nothing."""
    names = ("temperature", "seed", "stop")
    return passed(kind, request.body, *names, *(("top_p",) if request.body.get("top_p") != 1.0 else ()))


def require_chat(request: GenerationRequest) -> None:
    """Raise RequestRejected for a raw prompt, and for a request without a question."""
    require_question(request)
    if request.is_raw:
        raise RequestRejected("raw", "this service answers chats only")


def _role(message: Body) -> str:
    return "assistant" if message["role"] == "assistant" else "user"
