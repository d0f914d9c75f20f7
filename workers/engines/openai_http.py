"""Any server that speaks OpenAI's protocol: a vLLM server, llama.cpp, a hosted one.

The server is the operator's choice, so requests to it pass the egress guard by. A request is tried a bounded number of
times under one deadline: 408, 409, 429 and 5xx answers and lost connections are worth another try, and what the server
says in `Retry-After` is honoured (RFC 9110 section 10.2.3). Nothing else is repeated, but for what
`dialect` learns.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
from pydantic import Field, ValidationError

from schemas.bounded import BoundedModel
from schemas.job import MAX_TOKENS
from telemetry.clock import Clock
from telemetry.logs import get_logger, origin_of
from workers.egress.retry_after import parse_retry_after
from workers.engines.base import (
    Completion,
    EngineFailed,
    EngineLoad,
    EngineRefused,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    RequestRejected,
)
from workers.engines.dialect import Dialect, ServerProblem, problem_in
from workers.engines.finish import finish_reason, is_failure
from workers.engines.prompts import prompt_room
from workers.engines.settings import OpenAISettings

MAX_REASON_CHARACTERS = 300
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
CONNECT_SECONDS = 10.0

log = get_logger()

_REFUSED = {400, 413, 422}
_NOT_LET_IN = {401, 403}
_COMING_UP = {502, 503, 504}
"""What a server says that still loads its model, and a gateway in front of it."""
_OVERLOADED = {408, 409, 429, 502, 503}
"""What it says of itself rather than of the request."""
_NAMES_SHOWN = 8
_REASON_SHOWN = 40
_MOST_CHOICES = 64
"""One is asked for. Without a bound, an answer of 8 MiB could hold three million, in a gigabyte of memory."""
_MOST_MODELS = 10_000
_FIRST = GenerationRequest("first-request", "Hello.", None, 16, 0.0, temperature_is_default=True)


class _TokenLogprob(BoundedModel):
    logprob: float | None = None


class _Logprobs(BoundedModel):
    content: list[_TokenLogprob] | None = Field(default=None, max_length=MAX_TOKENS)
    """Of chat completions."""
    token_logprobs: list[float | None] | None = Field(default=None, max_length=MAX_TOKENS)
    """Of completions."""

    def values(self) -> list[float]:
        """The log-probabilities of the answer's tokens, as far as the server gave them."""
        given = [token.logprob for token in self.content] if self.content else self.token_logprobs or []
        return [value for value in given if value is not None]


class _Message(BoundedModel):
    content: str | None = None


class _Choice(BoundedModel):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(BoundedModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Bill(BoundedModel):
    usage: _Usage | None = None

    @property
    def completion_tokens(self) -> int:
        """What was generated, as far as the server says it."""
        return self.usage.completion_tokens if self.usage is not None else 0


class _ServerAnswer(_Bill):
    choices: list[_Choice] = Field(min_length=1, max_length=_MOST_CHOICES)


class _Model(BoundedModel):
    id: str
    parent: str | None = None
    """Of a LoRA adapter, the model that it is for, which is the one that has a window."""
    max_model_len: int | None = None
    """vLLM's servers say it: tokens of prompt and answer together. It is not in OpenAI's protocol."""


class _Models(BoundedModel):
    data: list[_Model] = Field(max_length=_MOST_MODELS)

    @property
    def names(self) -> list[str]:
        """The models and their LoRA adapters, which vLLM's servers list beside them."""
        return [model.id for model in self.data]

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
    is_the_server_s: bool = True
    """Whether it is about the server as a whole, and not perhaps about this request."""


class OpenAIEngine:
    """Implements `Engine`."""

    name = "openai"

    def __init__(self, settings: OpenAISettings, clock: Clock) -> None:
        if settings.model is None:
            raise ValueError("the openai engine needs the name of the server's model")
        self._model = settings.model
        self.models = (settings.model,)
        self._settings = settings
        self._dialect = Dialect(settings.model, settings)
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
        """Wait until the server answers, and find out whether it has our model, and with which window.

        Raises EngineUnavailable where there is no server, and EngineRefused where the key is wrong, or nothing is
        generated under the model's name.
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
                return await self._met()
            except EngineUnavailable as away:
                error = str(away)
            except aiohttp.ClientError as failed:
                error = type(failed).__name__
            log.info("The engine's server is not there yet.", action="engine-wait", error=error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    async def _met(self) -> None:
        """Raises EngineRefused, and EngineUnavailable or a ClientError where the server is still coming up."""
        async with self._http.get(f"{self._base}/models", allow_redirects=False) as response:
            if response.status in _NOT_LET_IN:
                raise self._refused(response.status)
            if response.status in _COMING_UP:
                raise EngineUnavailable(f"the server answered {response.status}")
            models = await self._listed(response)
        if models is None or self._model not in models.names:
            await self._tried_out(models)
        known = [models.window_of(self._model) if models is not None else None, self._settings.context_tokens]
        self._context_tokens = min((tokens for tokens in known if tokens is not None), default=None)

    def _refused(self, status: int) -> EngineRefused:
        """What the server says to our key, or to our having none."""
        variable = "POSTBACK_ENGINE__OPENAI__API_KEY"
        mend = f"set {variable}" if self._settings.api_key is None else f"{variable} is not a key that it takes"
        return EngineRefused(f"the server at {origin_of(self._base)} refuses to list its models ({status}): {mend}")

    async def _listed(self, response: aiohttp.ClientResponse) -> _Models | None:
        """The server's models; None where it has no such list, or one that cannot be read."""
        try:
            return _Models.model_validate_json(await self._read(response)) if response.status == 200 else None
        except (ValidationError, RequestRejected):
            return None

    async def _tried_out(self, models: _Models | None) -> None:
        """Have some tokens generated where no list says that our model is there.

        That alone says whether jobs can be answered: a server of llama.cpp takes any name, one of Ollama shorter names
        than it lists, and some have no list. Raises EngineRefused, and EngineUnavailable where it is still coming up.
        """
        try:
            outcome = await self._attempt(_FIRST)
        except (EngineUnavailable, RequestRejected) as error:
            if isinstance(error, EngineFailed) and error.took_too_long:
                raise
            said = "has no list of models" if models is None else f"lists no {self._model} but {_shown(models)}"
            raise EngineRefused(
                f"the server at {origin_of(self._base)} {said}, and a first request failed: {error}"
            ) from None
        if isinstance(outcome, _Retry):
            raise EngineUnavailable(outcome.reason)
        log.warning(
            "The engine's server does not list the model, and answers to its name.",
            action="engine-model-unlisted",
            model=self._model,
        )

    async def _asked(self, request: GenerationRequest) -> Completion:
        try:
            async with self._slots, asyncio.timeout(self._settings.request_timeout_seconds):
                return await self._tried(request)
        except TimeoutError:
            seconds = self._settings.request_timeout_seconds
            raise EngineFailed(f"the server did not answer within {seconds:g} s", took_too_long=True) from None

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
        raise EngineUnavailable(failure.reason) if failure.is_the_server_s else EngineFailed(failure.reason)

    async def _attempt(self, request: GenerationRequest) -> Completion | _Retry:
        """One POST, or one more for each parameter of ours that the server turns out not to take."""
        try:
            while True:
                sent = self._dialect.body(request)
                async with self._http.post(f"{self._base}/{self._path}", json=sent, allow_redirects=False) as response:
                    body = await self._read(response)
                if response.status != 400 or not self._dialect.learns(request, sent, problem_in(body)):
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
        if status == 504:
            raise EngineFailed("the server answered 504: it took longer than a gateway waits", took_too_long=True)
        if status in _OVERLOADED or status >= 500:
            after = parse_retry_after(headers.get("Retry-After", ""), self._clock.time())
            return _Retry(f"the server answered {status}", after, status in _OVERLOADED)
        problem = problem_in(body) if status in _REFUSED else ServerProblem()
        if status == 404 or problem.param == "model":  # every job says the same of both, which is ours and not its own
            raise EngineUnavailable(
                f"the server answered {status} to {self._path}: POSTBACK_ENGINE__OPENAI__BASE_URL is to end where its "
                "API begins, mostly in /v1, and --model or POSTBACK_ENGINE__OPENAI__MODEL to name a model that it has"
            )
        if status in _REFUSED:
            raise _refusal(request, status, problem)
        if status in _NOT_LET_IN:
            raise EngineUnavailable(f"the server refuses POSTBACK_ENGINE__OPENAI__API_KEY ({status})")
        if status != 200:
            raise EngineUnavailable(f"the server answered {status}")
        try:
            return _completion(_ServerAnswer.model_validate_json(body))
        except ValidationError:
            raise EngineFailed("the server's answer is not OpenAI's", wasted_tokens=_billed(body)) from None

    # -- the wire ------------------------------------------------------------------------------------------------

    @property
    def _path(self) -> str:
        return "chat/completions" if self._settings.api == "chat" else "completions"

    @property
    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineUnavailable("the engine is not started")
        return self._session

    def _headers(self) -> dict[str, str]:
        key = self._settings.api_key
        return {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}


def _billed(body: bytes) -> int:
    """Tokens of an answer that cannot be read otherwise."""
    try:
        return _Bill.model_validate_json(body).completion_tokens
    except ValidationError:
        return 0


def _completion(answer: _ServerAnswer) -> Completion:
    """Raises EngineFailed where the server says that it failed."""
    choice, usage = answer.choices[0], answer.usage or _Usage()
    text = choice.message.content if choice.message is not None else choice.text
    if is_failure(choice.finish_reason):
        raise EngineFailed("the server failed while it generated", wasted_tokens=usage.completion_tokens)
    reason = finish_reason(choice.finish_reason)
    if reason == "other":
        log.warning(
            "The engine's server gave an unknown reason for ending an answer; the job fails as unfinished.",
            action="finish-reason-unknown",
            reason=repr(choice.finish_reason)[:_REASON_SHOWN],
        )
    values = choice.logprobs.values() if choice.logprobs is not None else []
    confidence = min(1.0, math.exp(sum(values) / len(values))) if values else None
    return Completion(text or "", reason, usage.prompt_tokens, usage.completion_tokens, confidence)


_FIELDS = {
    name: name
    for name in ("max_tokens", "temperature", "top_p", "seed", "stop", "response_format", "messages", "prompt")
}
_FIELDS["max_completion_tokens"] = "max_tokens"
_LESS = 0.6
"""What is tried of a prompt that was too long: servers say in words alone what would fit."""


def _refusal(request: GenerationRequest, status: int, problem: ServerProblem) -> RequestRejected | PromptTooLong:
    """The server's refusal in its own words, by the field that it names."""
    if request.is_whole and status in (400, 413) and problem.is_of_length:
        return PromptTooLong(_LESS)
    field = _FIELDS.get(problem.param or "", "messages" if request.messages is not None else "prompt")
    reason = " ".join(problem.message.split())[:MAX_REASON_CHARACTERS]
    return RequestRejected(field, reason or f"the server answered {status}")


def _shown(models: _Models) -> str:
    """Some of their names, for a person who looks for the right one."""
    names, more = models.names[:_NAMES_SHOWN], len(models.names) - _NAMES_SHOWN
    return ", ".join(names) + (f" and {more} more" if more > 0 else "") if names else "none at all"


def _is_cancelled() -> bool:
    """Whether somebody cancels the task that runs this, which an abort of the request is not."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
