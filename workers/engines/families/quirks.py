"""Works around the quirks of a model family.

This module changes requests that the family's models would refuse, and mends answers that the models spoil.
"""

from __future__ import annotations

import re
from dataclasses import replace

from schemas.job import Message, TextPart
from workers.engines.base import Completion, Engine, EngineLoad, GenerationRequest, adapters_of
from workers.engines.families import Family

_MARK = "```"
_LANGUAGE = re.compile(r"[A-Za-z0-9_+-]*[ \t\r]*")


class FamilyEngine:
    """Implements `Engine`: the engine `inner`, with requests and answers changed for the quirks of a family."""

    def __init__(self, inner: Engine, family: Family | None) -> None:
        self.inner = inner
        self.family = family
        """The family of the engine's model; None for a model of no known family, whose requests stay as they are."""

    @property
    def name(self) -> str:
        """The engine's name in results."""
        return self.inner.name

    @property
    def models(self) -> tuple[str, ...]:
        """The names by which a job may ask for the engine's model."""
        return self.inner.models

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the engine's LoRA adapters."""
        return adapters_of(self.inner)

    @property
    def context_tokens(self) -> int | None:
        """The model's limit on tokens of prompt and answer together."""
        return self.inner.context_tokens

    def takes_images(self, model_id: str | None) -> bool:
        """True if the model of this name reads images."""
        return self.inner.takes_images(model_id)

    async def start(self) -> None:
        """Start the engine. Raises EngineError."""
        await self.inner.start()

    async def generate(self, request: GenerationRequest) -> Completion:
        """Answer one request. Raises EngineError."""
        completion = await self.inner.generate(with_quirks(request, self.family))
        return without_fence(completion, request, self.family)

    async def abort(self, request_id: str) -> None:
        """Stop a request. Unknown ids are ignored."""
        await self.inner.abort(request_id)

    def load(self) -> EngineLoad:
        """Return the engine's present load."""
        return self.inner.load()

    async def close(self) -> None:
        """End the engine."""
        await self.inner.close()


def with_quirks(request: GenerationRequest, family: Family | None) -> GenerationRequest:
    """Return the request in the form that the family takes.

    If the family takes no system messages, their texts move to the start of the first user message.
    """
    if family is None or family.system or request.messages is None:
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
    """Return the user's message with this text put in front of its own text. The images keep their places."""
    if not message.images:
        return Message(role="user", content=f"{text}\n\n{message.text}")
    return message.model_copy(update={"content": [TextPart(type="text", text=text), *message.parts]})


def without_fence(completion: Completion, request: GenerationRequest, family: Family | None) -> Completion:
    """Return the completion, without the Markdown fence that the family puts around the JSON of a job."""
    form = request.response_format
    if family is None or not family.fences or form is None or form.type == "text":
        return completion
    further = tuple(without_fence(each, request, family) for each in completion.further)
    return replace(completion, text=_unfenced(completion.text), further=further)


def _unfenced(text: str) -> str:
    """Return the text without a fence that encloses all of it. The time is linear in the length."""
    opening, newline, rest = text.strip().partition("\n")
    is_opened = newline and opening.startswith(_MARK) and _LANGUAGE.fullmatch(opening, len(_MARK))
    if not is_opened or not rest.endswith(_MARK):
        return text
    return rest.removesuffix(_MARK).rstrip(" \t").removesuffix("\n")
