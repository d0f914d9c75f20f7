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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from schemas.images import is_data_url, parted_data_url
from schemas.job import ImageUrl, Message, Reasoning, ResponseFormat, images_in
from schemas.kinds import KINDS
from schemas.result import Logprob, TokenLogprob
from schemas.tools import CalledFunction, Tool, ToolCall, ToolChoice
from workers.engines.pooling import Pooled, PoolingInput

_LEAST_LOGPROB = -9999.0
"""Stands for the logarithm of 0 in results, as in vLLM's server, because JSON has no infinity."""
TokenCount = Annotated[int, Field(ge=0, le=2**31 - 1)]
"""A number of tokens in a server's answer.

The bounds exist because metrics refuse negative numbers, and databases refuse larger numbers.
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
    """One prompt as engines get it, after enrichment and with every default filled in.

    Requests and completions are never changed. They are not frozen, since each job makes both, and a frozen dataclass
    of so many fields takes three times as long to make.
    """

    request_id: str
    prompt: str | None
    """The question as one text; None in a chat (`messages`) and in a request without a question (`pooling`)."""
    messages: tuple[Message, ...] | None
    max_tokens: int
    temperature: float | None
    """None means the model's default; 0 means greedy decoding."""
    temperature_is_default: bool = False
    """True if the job sets no temperature. The engine may then send no temperature to a model that refuses it."""
    is_raw: bool = False
    """True if the model completes the prompt unchanged, even if the model has a chat template."""
    model_id: str | None = None
    context_window: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """The job's further sampling fields that have a value, as in OpenAI's API; `sampling_fields` lists them."""
    n: int = 1
    """The number of answers. An engine that cannot give this many gives as many as it can."""
    top_logprobs: int | None = None
    """For each token of the answer, the number of likeliest tokens that are returned with log-probabilities.

    With 0, only the answer's own tokens have log-probabilities; with None, no log-probabilities are returned.
    """
    tools: tuple[Tool, ...] = ()
    """Functions that the model may call; empty for an answer without calls."""
    tool_choice: ToolChoice | None = None
    """The job's choice of a tool; None leaves the choice to the model, as `auto` does."""
    parallel_tool_calls: bool | None = None
    """If False, the model makes at most one call."""
    reasoning: Reasoning | None = None
    """Bounds of the reasoning before the answer; None leaves the reasoning to the model."""
    priority: int = 0
    """0 to 9; requests with a higher number run first."""
    response_format: ResponseFormat | None = None
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
    """The request's sampling fields that the engine does not take."""
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


class EngineError(Exception):
    """The engine could not answer."""


class RequestRejected(EngineError):  # noqa: N818
    """The request can never work on this engine."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


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


def with_refusal(completion: Completion, refusal: str | None) -> Completion:
    """Return the completion as the model's refusal; without a text for it, a fixed text states the refusal."""
    reason: FinishReason = "length" if completion.finish_reason == "length" else "stop"
    said = refusal or "the model refused to answer"
    return replace(completion, text="", refusal=said, finish_reason=reason, tool_calls=(), logprobs=None)


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
    for place, _ in images_in(request.messages or ()):
        raise RequestRejected(place, reason)


def inline(image: ImageUrl) -> tuple[str, str]:
    """Return an image's media type and its bytes in base64.

    Raises RequestRejected for a URL, because not the engine but the worker fetches images, through the egress guard.
    """
    if not is_data_url(image.url):
        raise RequestRejected("messages", "an image was not fetched before the request; report this defect")
    return parted_data_url(image.url)


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
    question = GenerationRequest(
        request_id, prompt, None, max_tokens, temperature, temperature_is_default=True, model_id=model_id
    )
    inputs = [PoolingInput(kind, (prompt,), (prompt,) if kind.model is not None else ()) for kind in KINDS]
    return (question, *(replace(question, prompt=None, pooling=each) for each in inputs))


def small_request(like: GenerationRequest) -> GenerationRequest:
    """Return a request of the same kind that a working model answers at once."""
    question, *others = first_requests(f"probe-{like.request_id}", _TEXT, _TOKENS, 0.0, like.model_id)
    kind = like.pooling.kind if like.pooling is not None else None
    return next((each for each in others if each.pooling is not None and each.pooling.kind is kind), question)


# -- The sampling fields of jobs, and the name of each in the request of each kind of engine: one row a field --
_SAME: Final = ("echo", "openai", "vllm")


def _row(name: str, *same: str, **others: str) -> dict[str, str]:
    return {**dict.fromkeys((*_SAME, *same), name), **others}


NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "top_p": _row("top_p", "anthropic", "responses", gemini="topP"),
    "min_p": _row("min_p"),
    "seed": _row("seed", gemini="seed"),
    # The Responses API takes no stop texts, so its engine cuts the answer itself.
    "stop": _row("stop", "responses", anthropic="stop_sequences", gemini="stopSequences"),
}
"""Maps the job's field to the engine kinds that take it, and to their names for it.

A field passes from the job to the engine without a change. An engine kind without a name for a field does not get it,
and the result names the field. Fields that steer an engine for other jobs too have no row: vLLM's `priority`,
`request_id`, `kv_transfer_params` and `cache_salt`, and `use_beam_search`, which takes a multiple of the memory.
"""


def named(kind: str, request: GenerationRequest) -> dict[str, Any]:
    """Return the request's sampling fields by the names of this engine kind, without those that it does not take."""
    return {NAMES[field][kind]: value for field, value in request.sampling.items() if kind in NAMES[field]}


def left_out(kind: str, request: GenerationRequest) -> tuple[str, ...]:
    """Return the request's sampling fields that this engine kind does not take."""
    return tuple(field for field in request.sampling if kind not in NAMES[field])
