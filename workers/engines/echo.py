"""The development engine: it answers at once with the words of the question. A token is a word.

An answer that takes time grows word by word, for a request with `on_delta`.

Jobs without a question get numbers that depend on their texts alone.

Directives in the question cause delays and faults for tests and rehearsals:

    [[sleep 2.5]]      answer after this many seconds
    [[crash-worker]]   end this whole process by SIGKILL, as the kernel does when memory runs out
    [[crash-engine]]   fail every request in flight, as a dead engine process does

A client that may submit jobs can therefore crash a worker with this engine, so the engine is not for production.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import ClassVar, Final, Literal

from pydantic import Field

from schemas.kinds import CLASSIFY, EMBED, RERANK, SCORE
from schemas.tools import CalledFunction, ToolCall
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.address import AddressEngine
from workers.engines.base import (
    Abort,
    Completion,
    EngineDied,
    EngineLoad,
    GenerationRequest,
    PromptTooLong,
    RequestRejected,
    inline,
    named_tool,
    prompt_room,
    token_logprob,
    with_calls,
)
from workers.engines.body import parts_of
from workers.engines.pooling import Pooled, PoolingInput
from workers.engines.settings import EngineSection

_SLEEP = re.compile(r"\[\[sleep (\d{1,6}(?:\.\d{1,6})?)\]\]")
_TOKEN = re.compile(r"\s*\S+")
_DIMENSIONS = 8
_CLASSES = ("LABEL_0", "LABEL_1")
_CRASH_WORKER = "[[crash-worker]]"
_CRASH_ENGINE = "[[crash-engine]]"

_Woken = Literal["slept", "aborted"]


class EchoSettings(EngineSection):
    """Settings of the development engine."""

    needs_model: ClassVar[bool] = False

    latency_seconds: float = Field(default=0.0, ge=0, le=3600)
    """Seconds that each answer takes."""
    max_concurrency: int = Field(default=1024, ge=1, le=8192)
    """Cap on the answers in progress; further requests wait for a place, as at a GPU."""


class EchoEngine(AddressEngine):
    """Answers at once; see the module."""

    name = "echo"

    def __init__(self, settings: EchoSettings, metrics: Metrics) -> None:
        super().__init__()
        self.models = (settings.model,) if settings.model else ()
        self._latency = settings.latency_seconds
        self._restarts = metrics.engine_restarts
        self._places = settings.max_concurrency
        self._sleeping: set[asyncio.Future[_Woken]] = set()
        """Requests that sleep or wait for a place."""
        self._alarms: dict[asyncio.Future[_Woken], asyncio.TimerHandle] = {}
        """The requests that have a place, each with the timer that ends its sleep."""
        self._queue: deque[tuple[asyncio.Future[_Woken], float]] = deque()
        """Requests that wait for a place, each with its latency in seconds; some of these requests may have ended."""

    def takes_images(self, model_id: str | None) -> bool:
        """Return True, because the answer names each image's media type and size in bytes."""
        return True

    async def complete(self, request: GenerationRequest) -> Completion:
        """Answer one request, at once or after the latency or `[[sleep]]`.

        Raises EngineError; EngineDied at `[[crash-engine]]`.
        """
        if request.adapter is not None:
            raise RequestRejected("adapter", "this engine has no adapters")
        if request.reasons:
            raise RequestRejected("reasoning", "this engine does not reason")
        asked = request.pooling
        text = request.question if asked is None else " ".join((*asked.queries, *asked.texts))
        seconds = self._latency
        if "[[" in text:
            seconds = self._obey(text, seconds)
        words = [*text.split(), *(word for image in _images(request) for word in image.split())]
        room = prompt_room(request, None) if asked is None else None
        if room is not None and len(words) > room:
            if request.is_whole:
                raise PromptTooLong(room / len(words))
            words = words[-room:]
        answer = _answer(words, request) if asked is None else _pooled(asked, len(words))
        if seconds > 0 and await self._say(answer.text, request, seconds) == "aborted":
            return Completion("", "abort", len(words), 0)
        return answer

    def load(self) -> EngineLoad:
        """Return the load. A request counts as running while it sleeps and has a place.

        Requests that do not sleep need no place, and are not counted.
        """
        running = len(self._alarms)
        return EngineLoad(running, waiting=len(self._sleeping) - running, free=self._places - running)

    async def close(self) -> None:
        """Abort the requests that still sleep."""
        await super().close()
        for sleeping in self._sleeping:
            _wake(sleeping, "aborted")

    def _obey(self, text: str, seconds: float) -> float:
        if _CRASH_WORKER in text:
            os.kill(os.getpid(), signal.SIGKILL)
        if _CRASH_ENGINE in text:
            self._die()
        directive = _SLEEP.search(text)
        return float(directive[1]) if directive else seconds

    def _die(self) -> None:
        self._restarts.inc()
        for sleeping in self._sleeping:
            if not sleeping.done():
                sleeping.set_exception(EngineDied("the engine died with this request in flight"))
        raise EngineDied("the engine died with this request in flight")

    async def _say(self, text: str, request: GenerationRequest, seconds: float) -> _Woken:
        """Sleep for the seconds; with `on_delta`, an equal part before each word of the text."""
        if request.on_delta is None:
            return await self._sleep(request.abort, seconds)
        ends = [word.end() for word in _TOKEN.finditer(text)] or [0]
        for start, end in pairwise([0, *ends]):
            if await self._sleep(request.abort, seconds / len(ends)) == "aborted":
                return "aborted"
            request.on_delta(text[start:end], start)
        return "slept"

    async def _sleep(self, abort: Abort, seconds: float) -> _Woken:
        sleeping: asyncio.Future[_Woken] = asyncio.get_running_loop().create_future()
        abort.stop = partial(_wake, sleeping, "aborted")
        self._sleeping.add(sleeping)
        self._queue.append((sleeping, seconds))
        self._fill()
        try:
            return await sleeping
        finally:
            self._sleeping.discard(sleeping)
            alarm = self._alarms.pop(sleeping, None)
            if alarm is not None:
                alarm.cancel()
                self._fill()

    def _fill(self) -> None:
        """Give the free places to waiting requests."""
        while self._queue and len(self._alarms) < self._places:
            sleeping, seconds = self._queue.popleft()
            if not sleeping.done():
                self._alarms[sleeping] = asyncio.get_running_loop().call_later(seconds, _wake, sleeping, "slept")


Settings = EchoSettings


def create(settings: EchoSettings, metrics: Metrics, clock: Clock) -> EchoEngine:
    """Make the engine of a worker; see `EngineModule`."""
    return EchoEngine(settings, metrics)


def _images(request: GenerationRequest) -> Iterator[str]:
    """Yield each image's media type and size as words. Raises RequestRejected for an image that was not fetched."""
    for message in request.messages:
        for part in parts_of(message):
            if part["type"] == "image_url":
                media_type, text = inline(part["image_url"])
                yield f"[{media_type}, {len(b64decode(text))} bytes]"


def _pooled(asked: PoolingInput, tokens: int) -> Completion:
    rows = tuple(_ROWS[asked.kind.field](asked))
    labels = tuple(_CLASSES[row.index(max(row))] for row in rows) if asked.kind is CLASSIFY else ()
    return Completion("", "stop", tokens, 0, pooled=Pooled(rows, labels))


def _embeddings(asked: PoolingInput) -> Iterator[tuple[float, ...]]:
    """Yield an embedding for each text: numbers from -1 to 1 from a hash of the text."""
    for text in asked.texts:
        digest = hashlib.shake_128(text.encode()).digest(asked.dimensions or _DIMENSIONS)
        yield tuple((byte - 127.5) / 127.5 for byte in digest)


def _scores(asked: PoolingInput) -> Iterator[tuple[float, ...]]:
    """Yield for each text the fraction of the query's words that the text contains."""
    for query, text in asked.pairs:
        words = set(query.casefold().split())
        yield (len(words & set(text.casefold().split())) / max(1, len(words)),)


def _probabilities(asked: PoolingInput) -> Iterator[tuple[float, ...]]:
    """Yield the probabilities of two classes for each text, from a hash of the text."""
    for text in asked.texts:
        share = hashlib.shake_128(text.encode()).digest(1)[0] / 255
        yield (share, 1 - share)


_ROWS: Final[Mapping[str, Callable[[PoolingInput], Iterator[tuple[float, ...]]]]] = {
    EMBED.field: _embeddings,
    RERANK.field: _scores,
    SCORE.field: _scores,
    CLASSIFY.field: _probabilities,
}
"""Maps each kind of job to the function that yields one row for each text."""


def _call(text: str, request: GenerationRequest) -> ToolCall:
    """Return the call of the tool that the job names, else of the first tool. The call's argument is the text."""
    name = named_tool(request.tool_choice) or request.body["tools"][0]["function"]["name"]
    arguments = json.dumps({"text": text}, ensure_ascii=False)
    return ToolCall(id="call_0", function=CalledFunction(name=name, arguments=arguments))


def _wake(sleeping: asyncio.Future[_Woken], why: _Woken) -> None:
    if not sleeping.done():
        sleeping.set_result(why)


def _answer(words: list[str], request: GenerationRequest) -> Completion:
    said = words[: request.max_tokens]
    reason: Literal["stop", "length"] = "length" if len(words) > len(said) else "stop"
    text = " ".join(said)
    if ends := [text.index(stop) for stop in request.body.get("stop", ()) if stop in text]:
        text, reason = text[: min(ends)], "stop"
        said = text.split()
    if request.response_format is not None:
        if request.response_format["type"] == "json_schema":
            raise RequestRejected("response_format", "this engine cannot follow a JSON Schema")
        text = json.dumps({"text": text}, ensure_ascii=False)
    logprobs = None
    if request.top_logprobs is not None:  # each word has the probability 1, so there are no alternatives
        words_said = _TOKEN.findall(text)
        logprobs = tuple(token_logprob(word, 0.0, [(word, 0.0)][: request.top_logprobs]) for word in words_said)
    if request.tool_choice not in (None, "auto", "none"):
        return with_calls(Completion("", reason, len(words), len(said), confidence=1.0), [_call(text, request)])
    further = (Completion(text, reason, 0, 0, confidence=1.0, logprobs=logprobs),) * (request.n - 1)
    return Completion(
        text, reason, len(words), request.n * len(said), confidence=1.0, logprobs=logprobs, further=further
    )
