"""A request's messages as the turns of an API that takes system texts apart from the chat."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from schemas.job import Message
from workers.engines.base import GenerationRequest, RequestRejected, require_question

Turn = tuple[str, str]
"""`user` or `assistant`, and the text."""


def parted(request: GenerationRequest) -> tuple[str, list[Turn]]:
    """Return the system text, and the turns of user and assistant. Texts of one speaker in a row become one turn.

    A chat of system messages alone becomes one turn of the user, since the APIs take no chat without a turn.
    Raises RequestRejected for a raw prompt, and for a request without a question.
    """
    require_question(request)
    if request.is_raw:
        raise RequestRejected("raw", "this service answers chats only")
    if request.messages is None:
        return "", [("user", request.prompt or "")]
    system = "\n\n".join(message.text for message in request.messages if _is_system(message))
    others: Sequence[Message] = [message for message in request.messages if not _is_system(message)]
    if not others:
        return "", [("user", system)]
    turns = [(role, "\n\n".join(each.text for each in group)) for role, group in groupby(others, _role)]
    return system, turns


def _is_system(message: Message) -> bool:
    return message.role in ("system", "developer")


def _role(message: Message) -> str:
    return message.role
