"""Answers in the forms of OpenAI's chat completions and completions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from schemas.bounded import BoundedModel
from schemas.job import MAX_TOKENS, MAX_TOP_LOGPROBS
from schemas.result import TokenLogprob
from schemas.tools import MAX_TOOL_CALLS, ToolCall
from telemetry.logs import get_logger
from workers.engines.base import (
    Completion,
    EngineFailed,
    GenerationRequest,
    numbered_call,
    token_logprob,
    with_calls,
    with_refusal,
)
from workers.engines.families import ReasoningMarks
from workers.engines.finish import finish_reason, is_failure, is_refusal
from workers.engines.openai_http.server import Usage
from workers.engines.reasoning import parted

log = get_logger()

_REASON_SHOWN = 40
_MOST_TOP = MAX_TOP_LOGPROBS + 1
"""Cap on the alternatives of one token in an answer.

The cap is one more than a job may ask for, because some servers add the chosen token to the wanted alternatives.
"""
_MOST_CHOICES = 64
"""Cap on an answer's choices; a request asks for few.

Without the cap, 8 MiB of JSON could become a gigabyte of objects.
"""


class Alternative(TypedDict, total=False):
    """A token as a dictionary.

    The two million alternatives of a large answer would take gigabytes if they were pydantic models.
    """

    token: str
    logprob: float | None


class Token(Alternative, total=False):
    """A token of an answer, with the likeliest tokens at its place."""

    top_logprobs: Annotated[list[Alternative], Field(max_length=_MOST_TOP)] | None


class _Logprobs(BoundedModel):
    content: list[Token] | None = Field(default=None, max_length=MAX_TOKENS)
    """Log-probabilities in the form of chat completions."""
    token_logprobs: list[float | None] | None = Field(default=None, max_length=MAX_TOKENS)
    """Log-probabilities in the form of completions."""
    tokens: list[str] | None = Field(default=None, max_length=MAX_TOKENS)
    """The tokens of `token_logprobs`, in the form of completions."""
    top_logprobs: list[dict[str, float | None] | None] | None = Field(default=None, max_length=MAX_TOKENS)
    """The likeliest tokens at each place, in the form of completions."""

    def values(self) -> list[float]:
        """Return the log-probabilities of the answer's tokens; empty if the server gave none."""
        given = [token.get("logprob") for token in self.content] if self.content else self.token_logprobs or []
        return [min(value, 0.0) for value in given if value is not None and not math.isnan(value)]

    def of_tokens(self, top: int, most: int) -> tuple[TokenLogprob, ...] | None:
        """Return at most `most` log-probabilities, with `top` alternatives each; None if the server gave none."""
        if self.content is not None:
            return logprobs_of(self.content[:most], top)
        if self.tokens is None or self.token_logprobs is None:
            return None
        above = self.top_logprobs or [None] * len(self.tokens)
        return tuple(
            token_logprob(token, _known(value), sorted(_pairs(others or {}), key=_by_logprob)[:top] if top else None)
            for token, value, others in zip(self.tokens[:most], self.token_logprobs, above, strict=False)
        )


def logprobs_of(tokens: Sequence[Token], top: int) -> tuple[TokenLogprob, ...]:
    """Return the tokens' log-probabilities, with `top` alternatives each."""
    return tuple(token_logprob(*_pair(each), [*map(_pair, (each.get("top_logprobs") or ())[:top])]) for each in tokens)


def _pair(found: Alternative) -> tuple[str, float]:
    return found.get("token", ""), _known(found.get("logprob"))


def _pairs(others: Mapping[str, float | None]) -> list[tuple[str, float]]:
    return [(token, _known(value)) for token, value in others.items()]


def _by_logprob(pair: tuple[str, float]) -> float:
    return -pair[1]


def _known(value: float | None) -> float:
    """Return the value, or the logarithm of 0 for a missing value."""
    return value if value is not None else -math.inf


class _CalledFunction(BoundedModel):
    name: str = Field(min_length=1, max_length=256)
    arguments: str | dict[str, Any] = ""
    """A text of JSON; some servers give the object instead of the text."""


class _Call(BoundedModel):
    id: str | None = Field(default=None, max_length=256)
    function: _CalledFunction

    def named(self, number: int) -> ToolCall:
        """Return the call; see `numbered_call`."""
        said = self.function.arguments
        arguments = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
        return numbered_call(self.id, self.function.name, arguments, number)


class _Message(BoundedModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = Field(default=None, max_length=MAX_TOOL_CALLS)
    reasoning: str | None = None
    """The reasoning, in the field that vLLM and OpenRouter use."""
    reasoning_content: str | None = None
    """The reasoning, in the field that DeepSeek, llama.cpp, SGLang and older vLLM use."""


class _Choice(BoundedModel):
    index: int = 0
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class ServerAnswer(BoundedModel):
    """The fields of a chat completion or a completion that this engine reads."""

    choices: list[_Choice] = Field(min_length=1, max_length=_MOST_CHOICES)
    usage: Usage | None = None


def completion_of(
    answer: ServerAnswer, marks: ReasoningMarks | None = None, request: GenerationRequest | None = None
) -> Completion:
    """Return the first choice as a completion; `further` has the other choices.

    Raises EngineFailed if a choice is a failure. `marks` separate the reasoning from the text if the server does not.
    Choices and tokens beyond the requested number are left out; without `request`, calls and log-probabilities are left
    out.
    """
    usage = answer.usage or Usage()
    choices = sorted(answer.choices, key=lambda each: each.index)[: request.n if request is not None else None]
    first, *further = [_completion(each, usage, marks, request) for each in choices]
    return replace(
        first,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens or None,
        further=tuple(further),
    )


def _completion(
    choice: _Choice, usage: Usage, marks: ReasoningMarks | None, request: GenerationRequest | None
) -> Completion:
    text, reasoning = choice.text or "", None
    if choice.message is not None:
        text, reasoning = choice.message.content or "", choice.message.reasoning or choice.message.reasoning_content
    if marks is not None and not reasoning:
        whole = parted(text, marks)
        text, reasoning = whole.text, whole.reasoning
    if is_failure(choice.finish_reason):
        raise EngineFailed("the server failed while it generated", wasted_tokens=usage.completion_tokens)
    reason = finish_reason(choice.finish_reason)
    if reason == "other" and not is_refusal(choice.finish_reason):
        log.warning(
            "The server ended an answer with an unknown finish reason; failing the job as unfinished.",
            action="finish-reason-unknown",
            reason=repr(choice.finish_reason)[:_REASON_SHOWN],
        )
    values = choice.logprobs.values() if choice.logprobs is not None else []
    confidence = math.exp(sum(values) / len(values)) if values else None
    logprobs = None
    if request is not None and request.top_logprobs is not None and choice.logprobs is not None:
        logprobs = choice.logprobs.of_tokens(request.top_logprobs, request.max_tokens)
    completion = Completion(text, reason, 0, 0, confidence, reasoning=reasoning or None, logprobs=logprobs)
    refusal = choice.message.refusal if choice.message is not None else None
    if (refusal and not text) or is_refusal(choice.finish_reason):
        return with_refusal(completion, refusal or text)
    if request is None or "tools" not in request.body or choice.message is None:
        return completion
    return with_calls(completion, [call.named(at) for at, call in enumerate(choice.message.tool_calls or ())])
