"""Changes to requests and answers for the quirks of a model's family."""

from __future__ import annotations

import re
from dataclasses import replace

from schemas.job import Message, TextPart
from workers.engines.base import Completion, GenerationRequest
from workers.engines.families import Family

_FENCE = re.compile(r"\s*```[A-Za-z0-9_+-]*[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


def with_quirks(request: GenerationRequest, family: Family | None) -> GenerationRequest:
    """Return the request. For a family without system messages, the user's first message begins with their texts."""
    if family is None or family.system != "none" or request.messages is None:
        return request
    of_system = [message.text for message in request.messages if message.role in ("system", "developer")]
    others = [message for message in request.messages if message.role not in ("system", "developer")]
    at = next((at for at, message in enumerate(others) if message.role == "user"), None)
    if not of_system:
        return request
    if at is None:
        return replace(request, messages=(Message(role="user", content="\n\n".join(of_system)), *others))
    others[at] = _led_by("\n\n".join(of_system), others[at])
    return replace(request, messages=tuple(others))


def _led_by(text: str, message: Message) -> Message:
    """Return the user's message with this text before its own; images keep their places."""
    if not message.images:
        return Message(role="user", content=f"{text}\n\n{message.text}")
    return message.model_copy(update={"content": [TextPart(type="text", text=text), *message.parts]})


def without_fence(completion: Completion, request: GenerationRequest, family: Family | None) -> Completion:
    """Return the completion, without the Markdown fence that the family puts around the JSON of a job."""
    form = request.response_format
    if family is None or not family.fences or form is None or form.type == "text":
        return completion
    found = _FENCE.fullmatch(completion.text)
    further = tuple(without_fence(each, request, family) for each in completion.further)
    return replace(completion, text=found[1] if found is not None else completion.text, further=further)
