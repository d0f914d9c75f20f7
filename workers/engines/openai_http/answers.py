"""Answers of model servers: each API's reader adds what it reads to one `Answer`, which becomes the completion.

A plain answer is read at once, and a streamed one event by event. So both have the same text, finish reason, calls,
usage and failures.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
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
    GenerationRequest,
    TokenCount,
    numbered_call,
    token_logprob,
    with_calls,
    with_refusal,
)
from workers.engines.families import ReasoningMarks
from workers.engines.finish import finish_reason, is_failure, is_refusal
from workers.engines.reasoning import answer_begun, parted

log = get_logger()

DONE: Final = b"[DONE]"
"""The event with which OpenAI's API and its imitators end a stream."""
MOST_CHOICES: Final = 64
"""Cap on an answer's choices; a request asks for few.

Without the cap, 8 MiB of JSON could become a gigabyte of objects.
"""
_REASON_SHOWN: Final = 40
_MOST_TOP: Final = MAX_TOP_LOGPROBS + 1
"""Cap on the alternatives of one token in an answer.

The cap is one more than a job may ask for, because some servers add the chosen token to the wanted alternatives.
"""
_TOKEN_BYTES: Final = 32
"""The size of a token or an alternative with its log-probability, which is at least that of its JSON."""


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

    top_logprobs: Annotated[list[Alternative], Field(max_length=_MOST_TOP)] | None


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

    def say(self, text: str) -> None:
        """Add to the text."""
        self.size += self.text.write(text)

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
        """exp(mean log-probability); None if the server gave no log-probabilities."""
        if self.mean_logprob is not None:
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

    @property
    def text(self) -> str:
        """The text of choice 0 so far, without its reasoning, as the whole answer will begin."""
        choice = self.choices.get(0, Choice())
        said = choice.text.getvalue()
        if self._marks is None or choice.reasoning.tell():
            return said
        return answer_begun(said, self._marks, reasons=self.request.reasons)

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
    return found.get("token", ""), _known(found.get("logprob"))


def _known(value: float | None) -> float:
    """Return the value, or the logarithm of 0 for a missing value."""
    return value if value is not None else -math.inf


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


# -- OpenAI's chat completions and completions --


class _Logprobs(BoundedModel):
    content: list[Token] | None = Field(default=None, max_length=MAX_TOKENS)
    """Log-probabilities in the form of chat completions."""
    token_logprobs: list[float | None] | None = Field(default=None, max_length=MAX_TOKENS)
    """Log-probabilities in the form of completions."""
    tokens: list[str] | None = Field(default=None, max_length=MAX_TOKENS)
    """The tokens of `token_logprobs`, in the form of completions."""
    top_logprobs: list[dict[str, float | None] | None] | None = Field(default=None, max_length=MAX_TOKENS)
    """The likeliest tokens at each place, in the form of completions."""

    def all(self) -> list[Token] | None:
        """Return the tokens in the form of chat completions; None if the server gave none."""
        if self.content is not None or self.token_logprobs is None:
            return self.content
        tokens = self.tokens or [""] * len(self.token_logprobs)
        above = self.top_logprobs or [None] * len(tokens)
        return [
            {"token": token, "logprob": value, "top_logprobs": _sorted(others or {})}
            for token, value, others in zip(tokens, self.token_logprobs, above, strict=False)
        ]


def _sorted(others: Mapping[str, float | None]) -> list[Alternative]:
    pairs = sorted(((_known(value), token) for token, value in others.items()), key=lambda pair: -pair[0])
    return [{"token": token, "logprob": value} for value, token in pairs[:_MOST_TOP]]


class _Function(BoundedModel):
    name: str | None = Field(default=None, max_length=256)
    arguments: str | dict[str, Any] | None = None
    """A text of JSON; some servers give the object instead of the text."""


class _Call(BoundedModel):
    index: int | None = None
    id: str | None = Field(default=None, max_length=256)
    function: _Function


class _Said(BoundedModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = Field(default=None, max_length=MAX_TOOL_CALLS)
    reasoning: str | None = None
    """The reasoning, in the field that vLLM and OpenRouter use."""
    reasoning_content: str | None = None
    """The reasoning, in the field that DeepSeek, llama.cpp, SGLang and older vLLM use."""


class _Choice(Numbered):
    said: _Said | None = Field(default=None, validation_alias=AliasChoices("message", "delta"))
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _ChatCompletion(BoundedModel):
    choices: list[_Choice] = Field(default_factory=list, max_length=MOST_CHOICES)
    usage: Usage | None = None


def read_chat(document: bytes, answer: Answer) -> None:
    """Add a chat completion, a completion, or a chunk of one of them to the answer. Raises ValueError."""
    if document == DONE:
        answer.is_whole = True
        return
    read = _ChatCompletion.model_validate_json(document)
    answer.count(read.usage)
    for index, each in by_index(read.choices):
        choice, said = answer.choice(index), each.said or _Said(content=each.text)
        choice.say(said.content or "")
        choice.think(said.reasoning or said.reasoning_content or "")
        choice.refuse(said.refusal or "")
        for call in said.tool_calls or ():
            function = call.function
            choice.call(function.name or "", function.arguments or "", call.id or "", call.index)
        if each.logprobs is not None and (tokens := each.logprobs.all()) is not None:
            choice.likely(tokens)
        choice.end(each.finish_reason)
    answer.is_whole = answer.is_whole or (answer.has_ended and len(answer.choices) >= answer.request.n)


# -- Server-sent events (WHATWG HTML, section 9.2) --
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


class EventCutter:
    """Cuts a stream into the data of its events, wherever the pieces of the stream begin and end."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        """The pieces of the line that has no end yet."""
        self._data: list[bytes] = []
        """The lines of the event that has no end yet."""
        self._is_after_cr = False
        self.pending = 0
        """The number of bytes since the last piece in which an event ended."""

    def events(self, piece: bytes) -> Iterator[bytes]:
        """Take the next piece, and yield the data of each event that ends in it, without comments and other fields."""
        if self._is_after_cr:  # the line has ended there already, and CRLF is one end
            piece = piece.removeprefix(b"\n")
        self._is_after_cr = piece.endswith(b"\r")
        first, *others = _LINE_END.split(piece)
        self._line.append(first)
        self.pending += len(piece)
        for line in others:
            yield from self._ended(b"".join(self._line))
            self._line = [line]

    def _ended(self, line: bytes) -> Iterator[bytes]:
        if line.startswith(b"data:"):
            self._data.append(line[len(b"data:") :].removeprefix(b" "))
        elif not line and self._data:
            yield b"\n".join(self._data)
            self._data, self.pending = [], 0
