"""The engine at one address, with the quirks of its model's family, and a judgement whose fault a failure is."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

from schemas.job import Message, TextPart
from workers.engines.base import (
    Completion,
    Engine,
    EngineError,
    EngineFailed,
    EngineLoad,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    Remote,
    RequestRejected,
    adapters_of,
)
from workers.engines.families import Family
from workers.engines.first_requests import small_request
from workers.engines.sampling_fields import left_out

PROBE_SECONDS = 10.0
"""Seconds in which an engine that works answers a small request."""
_ABORTED = "the engine aborted the request unasked"


class AddressEngine:
    """Implements `Engine`: the engine `inner`, with requests and answers changed for the quirks of a family.

    An EngineFailed of the inner engine stays one only if the engine works: it answered a request that began later, or
    answers a small request now. Otherwise the engine is at fault, or a proxy before a dead server, and the error
    becomes EngineUnavailable. A request that took too long gets no small request: a slow server answers that one later
    too, and so proves nothing.
    """

    def __init__(self, inner: Engine, family: Family | None) -> None:
        self.inner = inner
        self.family = family
        """The family of the engine's model; None for a model of no known family, whose requests stay as they are."""
        self._begun = self._newest_answered = 0
        self._asking: dict[str, bool] = {}
        """The requests in flight; True if an abort was asked for."""
        self._probing: asyncio.Task[bool] | None = None
        self._is_closed = False

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

    @property
    def is_away(self) -> bool:
        """True if the engine's server is known to answer nothing."""
        return isinstance(self.inner, Remote) and self.inner.is_away

    def takes_images(self, model_id: str | None) -> bool:
        """True if the model of this name reads images."""
        return self.inner.takes_images(model_id)

    async def start(self) -> None:
        """Start the engine. Raises EngineError."""
        await self.inner.start()

    async def generate(self, request: GenerationRequest) -> Completion:
        """Answer one request. Raises EngineError; EngineFailed only if the request may be to blame."""
        self._begun += 1
        number = self._begun
        self._asking[request.request_id] = False
        try:
            completion = await self.inner.generate(with_quirks(request, self.family))
            if completion.finish_reason != "abort":
                self._newest_answered = max(self._newest_answered, number)
            elif not self._asking[request.request_id] and not self._is_closed:
                raise EngineFailed(_ABORTED, wasted_tokens=completion.completion_tokens)
        except EngineFailed as failed:
            if await self._works(request, number, failed):
                raise
            raise EngineUnavailable(str(failed), wasted_tokens=failed.wasted_tokens) from failed
        finally:
            del self._asking[request.request_id]
        completion = without_fence(completion, request, self.family)
        return replace(completion, left_out=left_out(self.name, request)) if request.sampling else completion

    async def abort(self, request_id: str) -> None:
        """Stop a request. Unknown ids are ignored."""
        if request_id in self._asking:
            self._asking[request_id] = True
        await self.inner.abort(request_id)

    def load(self) -> EngineLoad:
        """Return the engine's present load."""
        return self.inner.load()

    async def close(self) -> None:
        """End the engine."""
        self._is_closed = True
        if self._probing is not None:
            self._probing.cancel()
        await self.inner.close()

    async def _works(self, request: GenerationRequest, number: int, failed: EngineFailed) -> bool:
        """True if the engine has answered a request that began after request `number`, or answers a small one now."""
        if self._newest_answered > number or failed.took_too_long:
            return self._newest_answered > number
        if self._probing is None:  # one probe serves all requests that fail meanwhile
            self._probing = asyncio.create_task(self._probed(request), name="engine-probe")
            self._probing.add_done_callback(self._end_probe)
        probing = self._probing
        await asyncio.wait({probing})
        return not probing.cancelled() and probing.result()

    def _end_probe(self, probing: asyncio.Task[bool]) -> None:
        self._probing = None

    async def _probed(self, like: GenerationRequest) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                if isinstance(self.inner, Remote):
                    await self.inner.probe(like)
                else:
                    await self.inner.generate(small_request(like))
        except (RequestRejected, PromptTooLong):
            return True
        except (EngineError, TimeoutError):
            return False
        return True


# -- Works around the quirks of a model family --
_MARK = "```"
_LANGUAGE = re.compile(r"[A-Za-z0-9_+-]*[ \t\r]*")


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
