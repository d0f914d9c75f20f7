"""Answers of models: each engine's reader adds what it reads to one `Answer`, which becomes the completion.

A plain answer is read at once, and a streamed one event by event. So both have the same text, finish reason, calls,
usage and failures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import StringIO
from typing import Annotated, Any, Final, TypeVar

from pydantic import AliasChoices, AliasPath, Field
from typing_extensions import TypedDict

from schemas.bounded import BoundedModel
from schemas.job import MAX_TOKENS, MAX_TOP_LOGPROBS
from schemas.result import TokenLogprob
from schemas.tools import MAX_TOOL_CALLS
from telemetry.logs import get_logger
from workers.engines.base import (
    Completion,
    EngineFailed,
    FinishReason,
    GenerationRequest,
    TokenCount,
    numbered_call,
    token_logprob,
    with_calls,
    with_refusal,
)
from workers.engines.families import ReasoningMarks
from workers.engines.reasoning import Growth, parted

log = get_logger()

MOST_CHOICES: Final = 64
"""Cap on an answer's choices; a request asks for few.

Without the cap, 8 MiB of JSON could become a gigabyte of objects.
"""
MOST_TOP: Final = MAX_TOP_LOGPROBS + 1
"""Cap on the alternatives of one token in an answer.

The cap is one more than a job may ask for, because some servers add the chosen token to the wanted alternatives.
"""
_REASON_SHOWN: Final = 40
_TOKEN_BYTES: Final = 32
"""The size of a token or an alternative with its log-probability, which is at least that of its JSON."""

# -- Finish reasons of servers and of vLLM: the text without calls is an answer only after `stop` or `length` --
_SAME_MEANING: Final[dict[FinishReason, tuple[str, ...]]] = {
    "stop": ("eos", "eos_token", "stop_sequence", "end_turn", "complete", "completed"),
    "length": ("max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"),
    "abort": ("cancelled",),
    "content_filter": ("safety", "recitation", "blocklist", "prohibited_content", "spii"),
    "tool_calls": ("function_call", "tool_use"),
    "repetition": (),
}
"""Maps each FinishReason to the words of TGI, Mistral, Anthropic, Gemini, Cohere and OpenAI's Responses API."""

_MEANINGS = {word: reason for reason, others in _SAME_MEANING.items() for word in (reason, *others)}
_FAILURES = frozenset(("error", "insufficient_system_resource"))


def is_failure(said: str | None) -> bool:
    """True for a temporary failure: `error` (vLLM, Mistral, OpenRouter), `insufficient_system_resource` (DeepSeek)."""
    return said is not None and said.lower() in _FAILURES


def is_refusal(said: str | None) -> bool:
    """True if the model refused to answer: Anthropic's word, which gateways pass on."""
    return said is not None and said.lower() == "refusal"


def finish_reason(said: str | None) -> FinishReason:
    """Map the engine's word, in upper or lower case, to a FinishReason. An unknown word becomes `other`.

    A missing word becomes `stop`, as in vLLM's own server.
    """
    return _MEANINGS.get(said.lower(), "other") if said else "stop"


# -- Parts of an answer --
class Usage(BoundedModel):
    """The tokens of an answer, under the names that the services give them. Absent counts are 0 or None."""

    prompt_tokens: TokenCount = Field(
        default=0, validation_alias=AliasChoices("prompt_tokens", "input_tokens", "promptTokenCount", "total_tokens")
    )
    completion_tokens: TokenCount = Field(
        default=0, validation_alias=AliasChoices("completion_tokens", "output_tokens", "candidatesTokenCount")
    )
    cached_tokens: TokenCount | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "cachedContentTokenCount",
            AliasPath("prompt_tokens_details", "cached_tokens"),
            AliasPath("input_tokens_details", "cached_tokens"),
        ),
    )
    thoughts: TokenCount = Field(default=0, validation_alias="thoughtsTokenCount")
    reasoning_tokens: TokenCount | None = Field(
        default=None,
        validation_alias=AliasChoices(
            AliasPath("completion_tokens_details", "reasoning_tokens"),
            AliasPath("output_tokens_details", "reasoning_tokens"),
        ),
    )
    cache_creation_input_tokens: TokenCount | None = None
    cache_read_input_tokens: TokenCount | None = None

    @property
    def read(self) -> int:
        """The tokens of the prompt. Anthropic counts those that go into its cache or come from it apart."""
        return self.prompt_tokens + (self.cache_creation_input_tokens or 0) + (self.cache_read_input_tokens or 0)

    @property
    def generated(self) -> int:
        """The tokens of the answer with its reasoning, which Gemini counts apart."""
        return self.completion_tokens + self.thoughts


class Alternative(TypedDict, total=False):
    """A token as a dictionary.

    The two million alternatives of a large answer would take gigabytes if they were pydantic models.
    """

    token: str
    logprob: Annotated[float | None, Field(validation_alias=AliasChoices("logprob", "logProbability"))]


class Token(Alternative, total=False):
    """A token of an answer, with the likeliest tokens at its place."""

    top_logprobs: Annotated[list[Alternative], Field(max_length=MOST_TOP)] | None


class Choice:
    """One of the answers to a request, as far as it was read."""

    def __init__(self) -> None:
        self.text, self.reasoning, self.refusal = StringIO(), StringIO(), StringIO()
        self.calls: list[dict[str, Any]] = []
        self.tokens: list[Token] | None = None
        """The answer's tokens with log-probabilities; None if the server gave none."""
        self.mean_logprob: float | None = None
        """The mean log-probability, from a server that gives it itself."""
        self.reason: str | None = None
        """The server's word for the end."""
        self.size = 0
        """The characters and bytes that are kept, counted like the JSON of a plain answer."""
        self._by_index: dict[int, dict[str, Any]] = {}
        self._told = 0

    def say(self, text: str) -> None:
        """Add to the text."""
        self.size += self.text.write(text)

    def news(self) -> str:
        """Return the text since the last call."""
        self.text.seek(self._told)
        news = self.text.read()
        self._told += len(news)
        return news

    def think(self, text: str) -> None:
        """Add to the reasoning."""
        self.size += self.reasoning.write(text)

    def refuse(self, text: str) -> None:
        """Add to the refusal."""
        self.size += self.refusal.write(text)

    def call(self, name: str, arguments: str | dict[str, Any], call_id: str = "", index: int | None = None) -> None:
        """Add a call, or the next part of the call with this index. An object of arguments is written as JSON.

        Some servers stream whole calls, without an index or all with the same one. Raises ValueError for too many.
        """
        index = index if index is not None else len(self.calls) - (not name)
        call = self._by_index.get(index)
        if call is None or (call_id and call["id"] and call_id != call["id"]):
            if len(self.calls) == MAX_TOOL_CALLS:
                raise ValueError("has too many calls")
            call = self._by_index[index] = {"id": "", "name": "", "arguments": StringIO()}
            self.calls.append(call)
        written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        call["id"], call["name"] = call["id"] or call_id, call["name"] or name
        self.size += call["arguments"].write(written) + len(call_id) + len(name)

    def likely(self, tokens: Sequence[Token]) -> None:
        """Add tokens with their log-probabilities. Raises ValueError for more than an answer may have."""
        kept = self.tokens = self.tokens if self.tokens is not None else []
        kept += tokens
        if len(kept) > MAX_TOKENS:
            raise ValueError("has too many tokens")
        self.size += _TOKEN_BYTES * sum(1 + len(token.get("top_logprobs") or ()) for token in tokens)

    def end(self, reason: str | None) -> None:
        """Note the server's reason for the end; without one, the answer goes on."""
        self.reason = reason or self.reason

    @property
    def confidence(self) -> float | None:
        """exp(mean log-probability); None if the server gave no log-probabilities that are numbers."""
        if self.mean_logprob is not None and not math.isnan(self.mean_logprob):
            return math.exp(min(self.mean_logprob, 0.0))
        given = [token.get("logprob") for token in self.tokens or ()]
        values = [min(value, 0.0) for value in given if value is not None and not math.isnan(value)]
        return math.exp(sum(values) / len(values)) if values else None


class Answer:
    """The answer to one request, as far as it was read; `choices` has its choices by index."""

    def __init__(
        self,
        request: GenerationRequest,
        marks: ReasoningMarks | None = None,
        *,
        no_reason: str = "stop",
        no_arguments: str = "",
    ) -> None:
        """`marks` separate the reasoning from the text if the server does not.

        `no_reason` and `no_arguments` stand for a reason of the end and for arguments of a call that the server left
        out.
        """
        self.request = request
        self.choices: dict[int, Choice] = {}
        self.usage = Usage()
        self.is_whole = False
        """True once nothing but the end of a stream is missing."""
        self._marks = marks
        self._growth = Growth(marks, reasons=request.reasons) if marks is not None else None
        self._first: Choice | None = None
        self._no_reason = no_reason
        self._no_arguments = no_arguments

    def choice(self, index: int = 0) -> Choice:
        """Return the choice with this index. Raises ValueError for too many choices."""
        if index not in self.choices and len(self.choices) == MOST_CHOICES:
            raise ValueError("has too many choices")
        return self.choices.setdefault(index, Choice())

    def count(self, usage: Usage | None) -> None:
        """Note the counts that the server states now."""
        if usage is not None:
            told = {name: getattr(usage, name) for name in usage.model_fields_set}
            self.usage = self.usage.model_copy(update=told)

    @property
    def size(self) -> int:
        """The size of all choices."""
        return sum(choice.size for choice in self.choices.values())

    @property
    def has_ended(self) -> bool:
        """True if each choice has a reason for its end."""
        return bool(self.choices) and all(choice.reason for choice in self.choices.values())

    def grown(self) -> str:
        """Return what the text of choice 0 has gained since the last call, without its reasoning.

        A choice that replaces the first one gains nothing, since it repeats that one's text.
        """
        choice = self.choices.get(0)
        self._first = self._first or choice
        if choice is None or choice is not self._first:
            return ""
        gained = choice.news()
        if self._growth is None:
            return gained
        if self._growth.has_begun or not choice.reasoning.tell():
            return self._growth.add(gained)
        self._growth = None  # the server separates the reasoning itself
        return choice.text.getvalue()

    def completion(self) -> Completion:
        """Return the first choice as a completion; `further` has the other choices that the request asks for.

        Calls and tokens beyond those that the request asks for are left out. Raises EngineFailed if a choice is a
        failure, and ValueError for an answer without a choice or with a call out of bounds.
        """
        if not self.choices:
            raise ValueError("has no choice")
        usage, indices = self.usage, sorted(self.choices)[: self.request.n]
        first, *further = [self._completion(self.choices[index]) for index in indices]
        return replace(
            first,
            prompt_tokens=usage.read,
            completion_tokens=usage.generated,
            cached_tokens=usage.cached_tokens if usage.cached_tokens is not None else usage.cache_read_input_tokens,
            reasoning_tokens=usage.reasoning_tokens or usage.thoughts or None,
            further=tuple(further),
        )

    def _completion(self, choice: Choice) -> Completion:
        said, text, reasoning = choice.reason, choice.text.getvalue(), choice.reasoning.getvalue() or None
        if self._marks is not None and reasoning is None:
            whole = parted(text, self._marks)
            text, reasoning = whole.text, whole.reasoning or None
        if is_failure(said):
            raise EngineFailed("the server failed while it generated", wasted_tokens=self.usage.generated)
        reason = finish_reason(said or self._no_reason)
        if reason == "other" and not is_refusal(said):
            log.warning(
                "The server ended an answer with an unknown finish reason; failing the job as unfinished.",
                action="finish-reason-unknown",
                reason=repr(said)[:_REASON_SHOWN],
            )
        completion = Completion(text, reason, 0, 0, choice.confidence, reasoning, logprobs=self._logprobs(choice))
        refusal = choice.refusal.getvalue()
        if (refusal and not text) or is_refusal(said):
            return with_refusal(completion, refusal or text)
        if "tools" not in self.request.body:
            return completion
        calls = [
            numbered_call(call["id"], call["name"], call["arguments"].getvalue() or self._no_arguments, at)
            for at, call in enumerate(choice.calls)
        ]
        return with_calls(completion, calls)

    def _logprobs(self, choice: Choice) -> tuple[TokenLogprob, ...] | None:
        top = self.request.top_logprobs
        if top is None or choice.tokens is None:
            return None
        return tuple(
            token_logprob(*_pair(token), [*map(_pair, (token.get("top_logprobs") or ())[:top])])
            for token in choice.tokens[: self.request.max_tokens]
        )


def _pair(found: Alternative) -> tuple[str, float]:
    """Return a token and its log-probability; the logarithm of 0 stands for a missing value."""
    value = found.get("logprob")
    return found.get("token", ""), value if value is not None else -math.inf


class Numbered(BoundedModel):
    """One choice of an answer, or its next part."""

    index: int = 0


N = TypeVar("N", bound=Numbered)


def by_index(parts: Sequence[N]) -> Iterator[tuple[int, N]]:
    """Yield the parts of one document with their choices' indices. Some servers give all choices the same one."""
    taken: set[int] = set()
    for part in parts:
        index = part.index if part.index not in taken else max(taken) + 1
        taken.add(index)
        yield index, part
