"""Any server that speaks OpenAI's protocol: a vLLM server, llama.cpp, a hosted one.

The server is the operator's choice, so requests to it pass the egress guard by. A request is tried a bounded number of
times under one deadline: 408, 409, 429 and 5xx answers and lost connections are worth another try, and what the server
says in `Retry-After` is honoured (RFC 9110 section 10.2.3). Nothing else is repeated.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
from pydantic import BaseModel, ValidationError

from telemetry.clock import Clock
from telemetry.logs import get_logger, origin_of
from workers.engines.base import (
    Completion,
    EngineLoad,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    RequestRejected,
)
from workers.engines.prompts import plain_text, prompt_room
from workers.engines.settings import OpenAISettings
from workers.retry_after import parse_retry_after

MAX_REASON_CHARACTERS = 300
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
CONNECT_SECONDS = 10.0

log = get_logger()

_RETRIED = {408, 409, 429}
_REFUSED = {400, 404, 413, 422}
_NOT_LET_IN = {401, 403}
_COMING_UP = {502, 503, 504}
"""What a server says that still loads its model, and a gateway in front of it."""


class _TokenLogprob(BaseModel):
    logprob: float | None = None


class _Logprobs(BaseModel):
    content: list[_TokenLogprob] | None = None
    """Of chat completions."""
    token_logprobs: list[float | None] | None = None
    """Of completions."""

    def values(self) -> list[float]:
        """The log-probabilities of the answer's tokens, as far as the server gave them."""
        given = [token.logprob for token in self.content] if self.content else self.token_logprobs or []
        return [value for value in given if value is not None]


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Answer(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Model(BaseModel):
    id: str
    parent: str | None = None
    """Of a LoRA adapter, the model that it is for, which is the one that has a window."""
    max_model_len: int | None = None
    """vLLM's servers say it: tokens of prompt and answer together. It is not in OpenAI's protocol."""


class _Models(BaseModel):
    data: list[_Model]

    def window_of(self, name: str) -> int | None:
        """What is said of this model, or of the one that it is an adapter for."""
        by_name = {model.id: model for model in self.data}
        model = by_name.get(name)
        if model is not None and model.max_model_len is None and model.parent is not None:
            model = by_name.get(model.parent)
        return model.max_model_len if model is not None else None


@dataclass(frozen=True, slots=True)
class _Retry:
    """The attempt failed in a way that may pass. `after` are seconds that the server asked for."""

    reason: str
    after: float | None = None


class OpenAIEngine:
    """Implements `Engine`."""

    name = "openai"

    def __init__(self, settings: OpenAISettings, clock: Clock) -> None:
        if settings.model is None:
            raise ValueError("the openai engine needs the name of the server's model")
        self._model = settings.model
        self._settings = settings
        self._clock = clock
        self._base = settings.base_url.rstrip("/")
        self._slots = asyncio.Semaphore(settings.max_concurrency)
        self._asking: dict[str, asyncio.Task[Completion]] = {}
        self._aborted: set[str] = set()
        self._session: aiohttp.ClientSession | None = None
        self._context_tokens = settings.context_tokens

    @property
    def context_tokens(self) -> int | None:
        """What the settings say, or the server of its model, whichever is less."""
        return self._context_tokens

    async def start(self) -> None:
        """Wait until the server answers, and ask it for its model's window.

        Any answer will do but that it is still coming up. Raises EngineUnavailable where there is none, and
        EngineRefused where the key is wrong.
        """
        self._session = aiohttp.ClientSession(
            headers=self._headers(),
            trust_env=False,
            connector=aiohttp.TCPConnector(limit=self._settings.max_concurrency),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        )
        try:
            async with asyncio.timeout(self._settings.start_timeout_seconds):
                await self._reached()
        except EngineRefused:
            await self.close()
            raise
        except TimeoutError:
            await self.close()
            raise EngineUnavailable(
                f"no server answered at {origin_of(self._base)} within {self._settings.start_timeout_seconds:g} s; "
                "POSTBACK_ENGINE__OPENAI__BASE_URL says where it is"
            ) from None

    async def generate(self, request: GenerationRequest) -> Completion:
        """Answer one request. Raises EngineError; cancelling closes the connection, which ends it at the server."""
        if request.adapter is not None:
            raise RequestRejected("adapter", "this engine has no adapters")
        prompt_room(request, self._context_tokens)  # refuses what has no room at all; nothing is cut here
        asking = self._asking[request.request_id] = asyncio.create_task(self._asked(request))
        try:
            return await asking
        except asyncio.CancelledError:
            if request.request_id in self._aborted and not _is_cancelled():
                return Completion("", "abort", 0, 0)
            raise
        finally:
            self._asking.pop(request.request_id, None)
            self._aborted.discard(request.request_id)

    async def abort(self, request_id: str) -> None:
        """Close the request's connection. What the server had generated is not known then."""
        asking = self._asking.get(request_id)
        if asking is not None:
            self._aborted.add(request_id)
            asking.cancel()

    def load(self) -> EngineLoad:
        """How many requests are at the server and how many wait for a place there."""
        running = min(len(self._asking), self._settings.max_concurrency)
        return EngineLoad(running=running, waiting=len(self._asking) - running)

    async def close(self) -> None:
        """Abort what is in flight and close the connections."""
        for request_id in list(self._asking):
            await self.abort(request_id)
        if self._session is not None:
            await self._session.close()

    # -- asking --------------------------------------------------------------------------------------------------

    async def _reached(self) -> None:
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                async with self._http.get(f"{self._base}/models", allow_redirects=False) as response:
                    if response.status in _NOT_LET_IN:
                        raise self._refused(response.status)
                    if response.status not in _COMING_UP:
                        return await self._learn(response)
                    error = str(response.status)
            except aiohttp.ClientError as failed:
                error = type(failed).__name__
            log.info("The engine's server is not there yet.", action="engine-wait", error=error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def _refused(self, status: int) -> EngineRefused:
        """What the server says to our key, or to our having none."""
        variable = "POSTBACK_ENGINE__OPENAI__API_KEY"
        mend = f"set {variable}" if self._settings.api_key is None else f"{variable} is not a key that it takes"
        return EngineRefused(f"the server at {origin_of(self._base)} refuses to list its models ({status}): {mend}")

    async def _learn(self, models: aiohttp.ClientResponse) -> None:
        """The model's window, where the server says it: not every server has this list, or this in it."""
        try:
            said = _Models.model_validate_json(await self._read(models)).window_of(self._model)
        except (ValidationError, RequestRejected):
            return
        known = [tokens for tokens in (said, self._settings.context_tokens) if tokens is not None]
        self._context_tokens = min(known, default=None)

    async def _asked(self, request: GenerationRequest) -> Completion:
        try:
            async with self._slots, asyncio.timeout(self._settings.request_timeout_seconds):
                return await self._tried(request)
        except TimeoutError:
            raise EngineUnavailable("the server did not answer in time") from None

    async def _tried(self, request: GenerationRequest) -> Completion:
        wait = FIRST_WAIT_SECONDS
        failure = _Retry("no attempt was made")
        for attempt in range(self._settings.attempts):
            if attempt:
                await asyncio.sleep(failure.after if failure.after is not None else wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
            outcome = await self._attempt(request)
            if isinstance(outcome, Completion):
                return outcome
            failure = outcome
            if failure.after is not None and failure.after > self._settings.request_timeout_seconds:
                break
        raise EngineUnavailable(failure.reason)

    async def _attempt(self, request: GenerationRequest) -> Completion | _Retry:
        path = "chat/completions" if self._settings.api == "chat" else "completions"
        try:
            async with self._http.post(
                f"{self._base}/{path}", json=self._body(request), allow_redirects=False
            ) as response:
                body = await self._read(response)
                return self._outcome(request, response.status, response.headers, body)
        except aiohttp.ClientError as error:
            return _Retry(f"the server was not reached: {type(error).__name__}")

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        """The body, which may not be larger than the limit, counted after decompression."""
        body = bytearray()
        async for chunk in response.content.iter_chunked(64 * 1024):
            body += chunk
            if len(body) > self._settings.max_response_bytes:
                raise RequestRejected("max_tokens", "the server's answer is larger than this engine reads")
        return bytes(body)

    def _outcome(
        self, request: GenerationRequest, status: int, headers: Mapping[str, str], body: bytes
    ) -> Completion | _Retry:
        if status in _RETRIED or status >= 500:
            return _Retry(
                f"the server answered {status}", parse_retry_after(headers.get("Retry-After", ""), self._clock.time())
            )
        if status in _REFUSED:
            raise _refusal(request, status, body)
        if status in _NOT_LET_IN:
            raise EngineUnavailable(f"the server refuses POSTBACK_ENGINE__OPENAI__API_KEY ({status})")
        if status != 200:
            raise EngineUnavailable(f"the server answered {status}")
        try:
            answer = _Answer.model_validate_json(body)
        except ValidationError:
            raise EngineUnavailable("the server's answer is not OpenAI's") from None
        if not answer.choices:
            raise EngineUnavailable("the server's answer has no choices")
        return _completion(answer)

    # -- the wire ------------------------------------------------------------------------------------------------

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineUnavailable("the engine is not started")
        return self._session

    def _headers(self) -> dict[str, str]:
        key = self._settings.api_key
        return {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        chat = self._settings.api == "chat"
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
        }
        if chat:
            body["messages"] = _messages(request)
        else:
            body["prompt"] = request.prompt if request.prompt is not None else plain_text(request.messages or ())
        if request.seed is not None:
            body["seed"] = request.seed
        if request.top_p != 1.0:
            body["top_p"] = request.top_p
        if request.stop:
            body["stop"] = list(request.stop)
        if request.response_format is not None and request.response_format.type != "text":
            body["response_format"] = request.response_format.model_dump(by_alias=True, exclude_none=True)
        if self._settings.log_probabilities:
            body["logprobs"] = True if chat else 0
        if self._settings.send_priority:
            body["priority"] = -request.priority  # vLLM runs lower ones first
        return body


def _messages(request: GenerationRequest) -> Sequence[dict[str, str]]:
    if request.messages is None:
        return [{"role": "user", "content": request.prompt or ""}]
    return [{"role": message.role, "content": message.text} for message in request.messages]


def _completion(answer: _Answer) -> Completion:
    choice, usage = answer.choices[0], answer.usage or _Usage()
    text = choice.message.content if choice.message is not None else choice.text
    reason: Literal["stop", "length"] = "length" if choice.finish_reason == "length" else "stop"
    values = choice.logprobs.values() if choice.logprobs is not None else []
    confidence = min(1.0, math.exp(sum(values) / len(values))) if values else None
    return Completion(text or "", reason, usage.prompt_tokens, usage.completion_tokens, confidence)


class _Problem(BaseModel):
    message: str = ""
    param: str | None = None

    @property
    def is_of_length(self) -> bool:
        """Whether the prompt is too long: vLLM and OpenAI say it with these words, llama.cpp with the others."""
        return any(words in self.message for words in ("maximum context length", "exceeds the available context size"))


class _Refusal(BaseModel):
    error: _Problem


_FIELDS = {"max_tokens", "temperature", "top_p", "seed", "stop", "response_format", "messages", "prompt"}
_LESS = 0.6
"""What is tried of a prompt that was too long: servers say in words alone what would fit."""


def _refusal(request: GenerationRequest, status: int, body: bytes) -> RequestRejected | PromptTooLong:
    """The server's refusal in its own words, by the field that it names."""
    try:
        problem = _Refusal.model_validate_json(body).error
    except ValidationError:
        problem = _Problem()
    if request.is_whole and status in (400, 413) and problem.is_of_length:
        return PromptTooLong(_LESS)
    field = "messages" if request.messages is not None else "prompt"
    if status == 404:
        field = "model_id"
    if problem.param in _FIELDS:
        field = problem.param
    reason = " ".join(problem.message.split())[:MAX_REASON_CHARACTERS]
    return RequestRejected(field, reason or f"the server answered {status}")


def _is_cancelled() -> bool:
    """Whether somebody cancels the task that runs this, which an abort of the request is not."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
