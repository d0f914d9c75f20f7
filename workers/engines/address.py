"""The engine at one address, with the quirks of its model's family, and a judgement whose fault a failure is."""

from __future__ import annotations

import asyncio
import re
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import replace

from telemetry.logs import get_logger
from workers.engines.base import (
    Completion,
    Engine,
    EngineError,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    RequestRejected,
    small_request,
)
from workers.engines.body import SYSTEM_ROLES, Body, left_out, parts_of, text_of, user_message
from workers.engines.families import Family
from workers.engines.settings import EngineSection

PROBE_SECONDS = 10.0
"""Seconds in which an engine that works answers a small request."""
_ABORTED = "the engine aborted the request unasked"

log = get_logger()


class AddressEngine(Engine):
    """The base of each engine with one model: `complete` is the engine's own way to an answer.

    Requests and answers are changed for the quirks of the model's `family`. An EngineFailed of `complete` stays one
    only if the engine works: it answered a request that began later, or answers a small request now. Otherwise the
    engine is at fault, or a proxy before a dead server, and the error becomes EngineUnavailable. A request that took
    too long gets no small request: a slow server answers that one later too, and so proves nothing.
    """

    family: Family | None = None
    """The family of the engine's model; None for a model of no known family, whose requests stay as they are."""

    def __init__(self) -> None:
        self.changed: Callable[[], object] = lambda: None
        """Called when `is_away` changes."""
        self._begun = self._newest_answered = 0
        self._probing: asyncio.Task[bool] | None = None
        self._is_closed = False

    @property
    def is_away(self) -> bool:
        """True if the engine's server answered nothing lately, so that requests are refused until it answers again."""
        return False

    @abstractmethod
    async def complete(self, request: GenerationRequest) -> Completion:
        """Answer one request. Raises EngineError. Cancelling the call aborts the request."""

    async def probe(self, like: GenerationRequest) -> None:
        """Answer a small request of the same kind, at a server beside the requests that wait. Raises EngineError."""
        await self.complete(small_request(like))

    changes_model = False
    """True if `change_model` is implemented."""

    async def change_model(self, section: EngineSection) -> None:
        """Serve the model and adapters of these settings from now on, without a restart.

        The old model finishes the running requests, each with its old adapter. Later requests wait for the new model.

        Raises EngineRefused if the new settings need a restart, EngineAway if a later try may succeed, and
        EngineUnavailable if the engine could not change.
        """
        raise EngineRefused("this engine takes new settings only at its start")

    async def generate(self, request: GenerationRequest) -> Completion:
        """Answer one request. Raises EngineError; EngineFailed only if the request may be to blame."""
        self._begun += 1
        number = self._begun
        try:
            completion = await self.complete(with_quirks(request, self.family))
            if completion.finish_reason != "abort":
                self._newest_answered = max(self._newest_answered, number)
            elif not request.abort.is_asked:
                raise EngineFailed(_ABORTED, wasted_tokens=completion.completion_tokens)
        except EngineFailed as failed:
            if not self._is_closed and await self._works(request, number, failed):
                raise
            raise EngineUnavailable(str(failed), wasted_tokens=failed.wasted_tokens) from failed
        completion = without_fence(completion, request, self.family)
        lacking = left_out(self.name, request.body)
        return replace(completion, left_out=lacking) if lacking else completion

    async def close(self) -> None:
        """End the engine. The requests in flight are aborted."""
        self._is_closed = True
        if self._probing is not None:
            self._probing.cancel()

    async def watch(self, seconds: float, look: Callable[[], Awaitable[None]]) -> None:
        """Look at the engine every so many seconds, until the task is cancelled."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await look()
            except Exception as error:  # without the watch, no hang would be seen from then on
                log.error("A look at the engine failed; looking again.", action="engine-watch-failed", exc_info=error)

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
                await self.probe(like)
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
    if family is None or family.system:
        return request
    of_system = [text_of(message) for message in request.messages if message["role"] in SYSTEM_ROLES]
    others = [message for message in request.messages if message["role"] not in SYSTEM_ROLES]
    if not of_system:
        return request
    said = "\n\n".join(of_system)
    at = next((at for at, message in enumerate(others) if message["role"] == "user"), None)
    if at is None:
        others.insert(0, user_message(said))
    else:
        others[at] = _led_by(said, others[at])
    return replace(request, body={**request.body, "messages": others})


def _led_by(text: str, message: Body) -> Body:
    """Return the user's message with this text put in front of its own text. The images keep their places."""
    if not parts_of(message):
        return user_message(f"{text}\n\n{text_of(message)}")
    return {**message, "content": [{"type": "text", "text": text}, *parts_of(message)]}


def without_fence(completion: Completion, request: GenerationRequest, family: Family | None) -> Completion:
    """Return the completion, without the Markdown fence that the family puts around the JSON of a job."""
    if family is None or not family.fences or request.response_format is None:
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
