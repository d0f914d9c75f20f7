"""The interface of an engine: the seam between a job and the generation of its answer.

Errors:

    EngineError
    ├── RequestRejected     the request can never work on this engine; names the field
    ├── PromptTooLong       the prompt exceeds the window and must not be cut; a prompt with less evidence may fit
    ├── EngineUnavailable   the engine is away or overloaded; the request is worth another try
    │   ├── EngineFailed    the engine failed at this request; the request may be to blame, so its tries are bounded.
    │   │                   `AddressEngine` passes it on only if the engine answers other requests
    │   └── EngineAway      the engine is being loaded, and cannot change its model yet
    ├── EngineDied          the engine's process died with every request in flight, and any request may be to blame
    ├── EngineRefused       the engine cannot start with these settings; names the setting to mend
    └── EngineLost          the engine will not come back in this process, so the process should end
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_core import from_json

from schemas.images import is_data_url, parted_data_url
from schemas.job import Job
from schemas.kinds import KINDS
from schemas.operator_error import OperatorError
from schemas.result import Logprob, TokenLogprob
from schemas.tools import CalledFunction, ToolCall
from workers.engines.body import Body, body_of, last_user_text, parts_of, user_message
from workers.engines.pooling import Pooled, PoolingInput

_LEAST_LOGPROB = -9999.0
"""Stands for the logarithm of 0 in results, as in vLLM's server, because JSON has no infinity."""
TokenCount = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""A number of tokens in a server's answer.

The bounds exist because metrics refuse negative numbers, and databases refuse larger numbers.
"""


OnDelta = Callable[[str, int], object]
"""Called on the event loop with the next piece of a growing text, and the number of characters before the piece.

An engine that begins the answer again begins with 0.
"""


class Abort:
    """Ends one request early: `ask` calls the `stop` of the part that has the request now, be it a queue or an engine.

    An aborted request gives a completion with the text so far, and with `finish_reason` abort.
    """

    __slots__ = ("is_asked", "stop")

    def __init__(self) -> None:
        self.is_asked = False
        self.stop: Callable[[], object] | None = None

    def ask(self) -> None:
        """End the request. A request that nothing works on is only marked."""
        self.is_asked = True
        if self.stop is not None:
            self.stop()


@dataclass(slots=True)
class GenerationRequest:
    """One request as engines get it: a body in OpenAI's shape, and beside it the worker's own orders.

    Requests and completions are never changed. They are not frozen, since each job makes both, and a frozen dataclass
    takes three times as long to make.
    """

    request_id: str
    body: Body
    """The question and its options; see `workers.engines.body`. It has the options alone if `pooling` has the texts."""
    model_id: str | None = None
    asked_in: str = "messages"
    """The job's field with the question, which an error about the question names."""
    temperature_is_default: bool = False
    """True if the job sets no temperature. The engine may then send no temperature to a model that refuses it."""
    context_window: int | None = None
    adapter: str | None = None
    pooling: PoolingInput | None = None
    """The texts of a request without a question. An engine that only generates text refuses such a request."""
    prefix_key: bytes | None = None
    """Requests with equal keys share a prompt prefix: the same system message and sources."""
    is_whole: bool = False
    """If True, a too long prompt is not cut but raises PromptTooLong.

    A cut at the prompt's start would remove the rules for sources.
    """
    abort: Abort = field(default_factory=Abort, compare=False, repr=False)
    """Ends this request early. The copies of a request share it."""
    on_delta: OnDelta | None = field(default=None, compare=False, repr=False)
    """Takes the answer's text while it grows, without the reasoning; an engine that cannot stream ignores it.

    The completion has the whole text in any case.
    """

    @property
    def is_raw(self) -> bool:
        """True if the model completes the prompt unchanged, even if the model has a chat template."""
        return "prompt" in self.body

    @property
    def messages(self) -> list[Body]:
        """The chat; empty for a raw prompt, and for a request without a question."""
        messages: list[Body] = self.body.get("messages", [])
        return messages

    @property
    def question(self) -> str:
        """The raw prompt, else the text of the user's last message, else that of the last message of any role."""
        text: str = self.body["prompt"] if self.is_raw else last_user_text(self.messages)
        return text

    @property
    def max_tokens(self) -> int:
        """The most tokens of each answer."""
        tokens: int = self.body["max_tokens"]
        return tokens

    @property
    def n(self) -> int:
        """The number of answers. An engine that cannot give this many gives as many as it can."""
        n: int = self.body.get("n", 1)
        return n

    @property
    def top_logprobs(self) -> int | None:
        """For each token of the answer, the number of likeliest tokens that are returned with log-probabilities.

        With 0, only the answer's own tokens have log-probabilities; with None, no log-probabilities are returned.
        """
        return self.body.get("top_logprobs", 0) if self.body.get("logprobs") else None

    @property
    def response_format(self) -> Body | None:
        """The form of a JSON answer; None for free text."""
        return self.body.get("response_format")

    @property
    def tool_choice(self) -> str | Body | None:
        """The choice of a tool; None if the request has no tools or leaves the choice to the model."""
        return self.body.get("tool_choice")

    @property
    def reasons(self) -> bool | None:
        """True if the request bounds the reasoning, False if it asks for none; None leaves it to the model."""
        if "reasoning_effort" not in self.body and "thinking_token_budget" not in self.body:
            return None
        return self.body.get("reasoning_effort") != "none"


def request_for(job: Job, request_id: str, **ours: Any) -> GenerationRequest:
    """Return the request of a job. `ours` are further fields of the request, which no job has."""
    texts = PoolingInput.of(job)
    fields: dict[str, Any] = {
        "model_id": job.model_id,
        "asked_in": "messages" if job.messages is not None else "prompt",
        "temperature_is_default": job.temperature is None,
        "context_window": job.context_window,
        "adapter": job.adapter,
        "pooling": texts,
        **ours,
    }
    return GenerationRequest(request_id, body_of(job) if texts is None else {"max_tokens": job.max_tokens}, **fields)


FinishReason = Literal["stop", "length", "abort", "content_filter", "tool_calls", "repetition", "other"]
"""The reason why the generation ended. `other` is an unknown reason, with which the answer is perhaps incomplete."""


@dataclass(frozen=True, slots=True)
class ServedBy:
    """The registry's model that answered, its engine's name, and the answer's price if the registry lists prices."""

    model: str
    engine: str
    cost: float | None = None
    currency: str | None = None


@dataclass(slots=True)
class Completion:
    """The engine's output. An aborted request gives a completion too, with `finish_reason` abort.

    `text` is an answer only if `finish_reason` is `stop` or `length`, or, in a completion with calls, `tool_calls`. The
    text does not include the reasoning.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    confidence: float | None = None
    """exp(mean log-probability of the answer's tokens), 0 to 1; None if the engine gives no log-probabilities."""
    reasoning: str | None = None
    """The model's reasoning before its answer; None if there is none."""
    reasoning_tokens: int | None = None
    """Tokens of the reasoning, a part of `completion_tokens`; None if the engine does not report them."""
    refusal: str | None = None
    """The model's refusal to answer; None if it answered. The text is then empty."""
    pooled: Pooled | None = None
    """The answer to the request's `pooling`; None for a request with a question."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls that the model asks for. `finish_reason` is then `tool_calls`, or `length` if a call is cut off."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Log-probabilities of the answer's tokens, without the reasoning; None unless the request asks for them."""
    further: tuple[Completion, ...] = ()
    """The answers after the first one, if the request asks for several.

    The first completion's token counts are the sums over all answers.
    """
    cached_tokens: int | None = field(default=None, compare=False)
    """Tokens of the prompt that the engine found in its prefix cache; None if the engine does not report them.

    The comparison of completions ignores this field, so a cold and a warm cache give equal completions.
    """
    served_by: ServedBy | None = None
    """The model behind the answer, in a worker with a model registry."""
    left_out: tuple[str, ...] = ()
    """The job's fields that the engine does not take."""
    failure: str | None = None
    """The engine's last failure, in place of an answer to a job that ended while the engine was away."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The engine's load, in requests."""

    running: int
    waiting: int
    free: int
    """The number of further requests that the engine would start without a wait."""
    away: str | None = None
    """The reason why the engine generates nothing now; None if there is no known reason."""


class EngineError(OperatorError):
    """The engine could not answer."""


class RequestRejected(EngineError):  # noqa: N818
    """The request can never work on this engine."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def named_tool(choice: str | Body | None) -> str | None:
    """Return the name of the function that a `tool_choice` demands; None for any other choice."""
    name: str | None = choice["function"]["name"] if isinstance(choice, dict) else None
    return name


def numbered_call(call_id: str | None, name: str, arguments: str, number: int) -> ToolCall:
    """Return a call; a call without an id gets an id from its number. Raises ValueError for values out of bounds."""
    return ToolCall(id=call_id or f"call_{number}", function=CalledFunction(name=name, arguments=arguments))


def with_calls(completion: Completion, calls: Sequence[ToolCall]) -> Completion:
    """Return the completion with these calls. A finish reason `stop` becomes `tool_calls`.

    Some servers give the reason `stop` for a call that the job demanded.
    """
    is_called = bool(calls) and completion.finish_reason == "stop"
    return replace(
        completion, tool_calls=tuple(calls), finish_reason="tool_calls" if is_called else completion.finish_reason
    )


REFUSED = "the model refused to answer"
"""The refusal of a model that gives no text for it."""


def with_refusal(completion: Completion, refusal: str | None) -> Completion:
    """Return the completion as the model's refusal; without a text for it, REFUSED states the refusal."""
    reason: FinishReason = "length" if completion.finish_reason == "length" else "stop"
    return replace(completion, text="", refusal=refusal or REFUSED, finish_reason=reason, tool_calls=(), logprobs=None)


def token_logprob(token: str, value: float, top: Sequence[tuple[str, float]] | None = None) -> TokenLogprob:
    """Return a token's log-probability in the form of results; `top` lists the likeliest tokens at that place."""
    others = [Logprob(token=text, logprob=_rounded(each)) for text, each in top] if top else None
    return TokenLogprob(token=token, logprob=_rounded(value), top_logprobs=others)


def _rounded(logprob: float) -> float:
    """Return the logarithm as a finite number of few digits, for JSON; -inf and NaN become `_LEAST_LOGPROB`."""
    return round(min(max(logprob, _LEAST_LOGPROB), 0.0), 6) if not math.isnan(logprob) else _LEAST_LOGPROB


NO_IMAGES = "the model takes text alone; name a model that takes images"
"""The reason that is given when an image is refused."""


def require_question(request: GenerationRequest) -> None:
    """Raise RequestRejected for a request without a question, because this engine only generates text."""
    if request.pooling is not None:
        kind = request.pooling.kind
        raise RequestRejected(kind.field, f"this engine gives no {kind.answer}; name a model that gives them")


def require_texts(request: GenerationRequest, reason: str) -> None:
    """Raise RequestRejected if the request has images. The error states this reason and names the first image."""
    for number, message in enumerate(request.messages):
        for place, part in enumerate(parts_of(message)):
            if part["type"] == "image_url":
                raise RequestRejected(f"messages.{number}.content.{place}", reason)


def inline(image: Body) -> tuple[str, str]:
    """Return an image's media type and its bytes in base64.

    Raises RequestRejected for a URL, because not the engine but the worker fetches images, through the egress guard.
    """
    if not is_data_url(image["url"]):
        raise RequestRejected("messages", "an image was not fetched before the request; report this defect")
    return parted_data_url(image["url"])


def arguments_of(call: Body) -> Body:
    """Return the arguments of a call in the chat, as an object. Raises RequestRejected for a text that is no object."""
    try:
        arguments = from_json(call["function"]["arguments"] or "{}", allow_inf_nan=False)
    except ValueError:  # also raised for deep nesting, and for lone surrogates, which no tokenizer takes
        arguments = None
    if not isinstance(arguments, dict):
        raise RequestRejected("messages", "`arguments` of a call in `tool_calls` must be a JSON object")
    return arguments


def prompt_room(request: GenerationRequest, most: int | None) -> int | None:
    """Return the number of tokens that the prompt may have beside the answer; None means no limit.

    `most` is the model's limit on prompt and answer. Raises RequestRejected if not even one token fits.
    """
    limits = [limit for limit in (request.context_window, most) if limit is not None]
    if not limits:
        return None
    window = min(limits)
    if window > request.max_tokens:
        return window - request.max_tokens
    if request.context_window is not None and request.context_window == window:
        raise RequestRejected("context_window", f"{window} tokens leave no room for a prompt beside max_tokens")
    raise RequestRejected("max_tokens", f"leaves no room for a prompt in the {window} tokens of this model")


class PromptTooLong(EngineError):  # noqa: N818
    """The prompt and the answer together exceed the model's window.

    `fits` estimates the fraction of the prompt that would fit.
    """

    def __init__(self, fits: float) -> None:
        super().__init__("the prompt does not fit into the window")
        self.fits = fits


class EngineUnavailable(EngineError):  # noqa: N818
    """The engine cannot answer now. `wasted_tokens` counts the tokens that were generated, as far as known."""

    def __init__(self, reason: str, *, wasted_tokens: int = 0) -> None:
        super().__init__(reason)
        self.wasted_tokens = wasted_tokens


class EngineAway(EngineUnavailable):
    """The engine is being loaded, and cannot change its model until the load has ended."""


class EngineFailed(EngineUnavailable):
    """The engine accepted the request and failed at it. `took_too_long` marks a timeout."""

    def __init__(self, reason: str, *, took_too_long: bool = False, wasted_tokens: int = 0) -> None:
        super().__init__(reason, wasted_tokens=wasted_tokens)
        self.took_too_long = took_too_long


class EngineDied(EngineError):  # noqa: N818
    """The engine's process ended with this request in flight."""


class EngineRefused(EngineError):  # noqa: N818
    """The engine cannot run with these settings; the text names the setting to mend."""


class EngineLost(EngineError):  # noqa: N818
    """The engine could not be loaded again, and this process no longer tries to load it."""


class Engine(ABC):
    """Generates answers. Each worker has one engine, and the engine serves many requests at once."""

    name: str
    """The engine's name in results, for example `vllm`."""
    models: tuple[str, ...] = ()
    """The names by which a job may ask for the engine's model; empty without a model. Results show the first name."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the LoRA adapters that a job may give in `adapter` now."""
        return ()

    @property
    def context_tokens(self) -> int | None:
        """The model's limit on tokens of prompt and answer together; None if the limit is missing or unknown.

        The value is valid from `start` on.
        """
        return None

    def takes_images(self, model_id: str | None) -> bool:
        """True if the model of this name reads images beside text. None names the engine's own model."""
        return False

    async def start(self) -> None:  # noqa: B027 - some engines load no model
        """Load the model, and return when the engine can generate. Called once, before the worker joins its group."""

    @abstractmethod
    async def generate(self, request: GenerationRequest) -> Completion:
        """Answer one request. Raises EngineError. Cancelling the call aborts the request, as `request.abort` does."""

    @abstractmethod
    def load(self) -> EngineLoad:
        """Return the engine's present load. The call is cheap and does no I/O."""

    async def close(self) -> None:  # noqa: B027 - some engines hold nothing
        """End the engine and all its processes and connections."""


# -- Requests that show whether a model answers at all: a question, then texts to embed, score, rank and classify --
_TEXT = "Hello."
_TOKENS = 16
"""The fewest tokens of an answer that each service takes."""


def first_requests(
    request_id: str, prompt: str, max_tokens: int, temperature: float | None = None, model_id: str | None = None
) -> tuple[GenerationRequest, ...]:
    """Return the requests in the order to try.

    Most models answer the first request; a reranker answers only the request to rank texts.
    """
    options: Body = {"max_tokens": max_tokens} | ({"temperature": temperature} if temperature is not None else {})
    question = GenerationRequest(
        request_id, {"messages": [user_message(prompt)], **options}, model_id, temperature_is_default=True
    )
    inputs = [PoolingInput(kind, (prompt,), (prompt,) if kind.model is not None else ()) for kind in KINDS]
    return (question, *(replace(question, body=options, pooling=each) for each in inputs))


def small_request(like: GenerationRequest) -> GenerationRequest:
    """Return a request of the same kind that a working model answers at once."""
    question, *others = first_requests(f"probe-{like.request_id}", _TEXT, _TOKENS, 0.0, like.model_id)
    kind = like.pooling.kind if like.pooling is not None else None
    return next((each for each in others if each.pooling is not None and each.pooling.kind is kind), question)
