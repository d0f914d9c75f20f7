"""What an engine is: the seam between a job and whatever generates its answer.

Errors, all EngineError:

    EngineError
    ├── RequestRejected     the request can never work here; names the field
    ├── PromptTooLong       it has no room in the window, and may not be cut; less evidence may fit
    ├── EngineUnavailable   not now: the server is away or overloaded; worth another try
    │   └── EngineFailed    it failed at this request, which may be to blame; worth some tries
    ├── EngineDied          the engine's process is gone, with every request in flight; any of them may be to blame
    ├── EngineRefused       when it starts: it cannot be had as the settings say; names the one to mend
    └── EngineLost          it does not come back in this process, which is to end
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from schemas.job import Message, ResponseFormat


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt as the engine gets it: after enrichment, with every default filled in."""

    request_id: str
    prompt: str | None
    messages: tuple[Message, ...] | None
    max_tokens: int
    temperature: float
    temperature_is_default: bool = False
    """Nobody asked for it, so that an engine whose model takes none may leave it out."""
    model_id: str | None = None
    context_window: int | None = None
    top_p: float = 1.0
    """Of each token only the likeliest are drawn from that together have this probability."""
    seed: int | None = None
    priority: int = 0
    """0 to 9, higher runs first."""
    response_format: ResponseFormat | None = None
    adapter: str | None = None
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are not part of it."""
    is_whole: bool = False
    """Its prompt may not be cut at its start, where it says how sources are to be read: PromptTooLong instead."""


FinishReason = Literal["stop", "length", "abort", "content_filter", "tool_calls", "repetition", "other"]
"""Why generation ended: `other` is what no engine of ours knows, so that the answer may be cut off anywhere."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine generated. An aborted request completes too, with `finish_reason` abort.

    Only after `stop` and `length` is `text` an answer.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    confidence: float | None = None
    """exp(mean log-probability of the generated tokens), 0 to 1; None where the engine does not tell."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is, in requests."""

    running: int
    waiting: int


class EngineError(Exception):
    """The engine could not answer."""


class RequestRejected(EngineError):  # noqa: N818
    """The request can never work on this engine."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class PromptTooLong(EngineError):  # noqa: N818
    """The prompt does not fit into the window beside the answer. `fits` is the part of it that would, about."""

    def __init__(self, fits: float) -> None:
        super().__init__("the prompt does not fit into the window")
        self.fits = fits


class EngineUnavailable(EngineError):  # noqa: N818
    """The engine cannot answer now."""


class EngineFailed(EngineUnavailable):
    """The engine took the request and failed at it.

    `took_too_long` where it gave no answer in its time, and `wasted_tokens` are those that are known to be generated.
    """

    def __init__(self, reason: str, *, took_too_long: bool = False, wasted_tokens: int = 0) -> None:
        super().__init__(reason)
        self.took_too_long = took_too_long
        self.wasted_tokens = wasted_tokens


class EngineDied(EngineError):  # noqa: N818
    """The engine's process ended with this request in flight."""


class EngineRefused(EngineError):  # noqa: N818
    """The engine cannot be had as the settings say; the text names the one to mend."""


class EngineLost(EngineError):  # noqa: N818
    """The engine could not be brought back, and nothing here will try again."""


class Engine(Protocol):
    """Generates answers. One per worker; it serves many requests at once."""

    @property
    def name(self) -> str:
        """What results call this engine, for example `vllm`."""
        ...

    @property
    def models(self) -> tuple[str, ...]:
        """What a job may call the engine's model, first what results call it; empty where it has none."""
        ...

    @property
    def context_tokens(self) -> int | None:
        """Tokens that the model takes of prompt and answer together; None where there is no limit, or none is known.

        Known from `start` on.
        """
        ...

    async def start(self) -> None:
        """Load and be ready to generate; returns when it is. Called once, before the worker joins its group."""
        ...

    async def generate(self, request: GenerationRequest) -> Completion:
        """Answer one request. Raises EngineError. Cancelling the call aborts the request."""
        ...

    async def abort(self, request_id: str) -> None:
        """Stop a request: its `generate` returns what there is, with `finish_reason` abort. Unknown ids are ignored."""
        ...

    def load(self) -> EngineLoad:
        """How busy the engine is now; cheap, without I/O."""
        ...

    async def close(self) -> None:
        """End the engine and everything that it started."""
        ...
