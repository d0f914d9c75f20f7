"""Answers in the forms of OpenAI's chat completions and completions."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from typing import Annotated, Any, Final

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
from workers.engines.openai_http.stream import DONE, AnswerStream
from workers.engines.reasoning import answer_begun, parted

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


# -- Streams --
_TOKEN_BYTES: Final = 32
"""The size of a token or an alternative with its log-probability, which is at least that of its JSON."""


class _FunctionPiece(BoundedModel):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _CallPiece(BoundedModel):
    index: int | None = None
    id: str | None = None
    function: _FunctionPiece = _FunctionPiece()


class _Delta(BoundedModel):
    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_CallPiece] | None = Field(default=None, max_length=MAX_TOOL_CALLS)


class _ChoicePiece(BoundedModel):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(BoundedModel):
    choices: list[_ChoicePiece] = Field(default_factory=list, max_length=_MOST_CHOICES)
    usage: dict[str, Any] | None = None


class _StreamedChoice:
    """One choice while it comes."""

    def __init__(self) -> None:
        self.texts: defaultdict[str, StringIO] = defaultdict(StringIO)
        """The members of the message that are texts."""
        self.finish_reason: str | None = None
        self._calls: list[dict[str, Any]] = []
        self._by_index: dict[int, dict[str, Any]] = {}
        self._logprobs: dict[str, list[Any]] | None = None

    def take(self, piece: _ChoicePiece) -> int:
        """Take the choice's next piece, and return the size of what is kept of it. Raises ValueError."""
        delta = piece.delta or _Delta(content=piece.text)
        said = {name: getattr(delta, name) for name in ("content", "refusal", "reasoning", "reasoning_content")}
        for name, text in said.items():
            if text:
                self.texts[name].write(text)
        self.finish_reason = piece.finish_reason or self.finish_reason
        size = sum(len(text) for text in said.values() if text)
        size += sum(map(self._take_call, delta.tool_calls or ()))
        return size + (self._take_logprobs(piece.logprobs) if piece.logprobs is not None else 0)

    def _take_call(self, piece: _CallPiece) -> int:
        """Take a piece of a call. Some servers send whole calls, without an index or all with the same one."""
        index = piece.index if piece.index is not None else len(self._calls) - (not piece.function.name)
        call = self._by_index.get(index)
        if call is None or (piece.id and call["id"] and piece.id != call["id"]):
            if len(self._calls) == MAX_TOOL_CALLS:
                raise ValueError("has too many calls")
            call = self._by_index[index] = {"id": None, "function": {"name": "", "arguments": StringIO()}}
            self._calls.append(call)
        function, said = call["function"], piece.function.arguments
        arguments = json.dumps(said, ensure_ascii=False) if isinstance(said, dict) else said or ""
        call["id"] = call["id"] or piece.id
        function["name"] = function["name"] or piece.function.name or ""
        function["arguments"].write(arguments)
        return len(piece.id or "") + len(piece.function.name or "") + len(arguments)

    def _take_logprobs(self, piece: _Logprobs) -> int:
        lists = {name: each for name, each in dict(piece).items() if each is not None}
        kept = self._logprobs = self._logprobs if self._logprobs is not None else {}
        for name, each in lists.items():
            kept.setdefault(name, []).extend(each)
        tops = [*(token.get("top_logprobs") or () for token in piece.content or ()), *(piece.top_logprobs or ())]
        return _TOKEN_BYTES * (sum(map(len, lists.values())) + sum(len(top or ()) for top in tops))

    def plain(self, index: int) -> dict[str, Any]:
        """Return the choice of a chat completion."""
        calls = [
            {**call, "function": {**call["function"], "arguments": call["function"]["arguments"].getvalue()}}
            for call in self._calls
        ]
        message = {**{name: text.getvalue() for name, text in self.texts.items()}, "tool_calls": calls}
        said = {"finish_reason": self.finish_reason, "logprobs": self._logprobs}
        return {"index": index, "message": message, **said}


class ChatStream(AnswerStream):
    """The chunks of a chat completion or a completion."""

    def __init__(self, marks: ReasoningMarks | None, request: GenerationRequest) -> None:
        super().__init__()
        self._marks = marks
        self._reasons = request.reasons
        self._n = request.n
        self._choices: dict[int, _StreamedChoice] = {}
        self._usage: dict[str, Any] | None = None

    def take(self, event: bytes) -> None:
        """Take a chunk; see `AnswerStream`."""
        if event == DONE:
            self.is_whole = True
            return
        chunk = _Chunk.model_validate_json(event)
        self._usage = chunk.usage or self._usage
        for piece in chunk.choices:
            choice = self._choices.setdefault(piece.index, _StreamedChoice())
            self.size += choice.take(piece)
        if len(self._choices) > _MOST_CHOICES:
            raise ValueError("has too many choices")
        ended = sum(each.finish_reason is not None for each in self._choices.values())
        self.is_whole = ended == len(self._choices) >= self._n

    def plain(self) -> dict[str, Any]:
        """Return the chat completion."""
        return {"choices": [each.plain(index) for index, each in self._choices.items()], "usage": self._usage}

    @property
    def text(self) -> str:
        """The first choice's text so far; see `AnswerStream`."""
        if not self._choices:
            return ""
        texts = self._choices[min(self._choices)].texts
        said = texts["content"].getvalue()
        if self._marks is None or texts["reasoning"].tell() or texts["reasoning_content"].tell():
            return said
        return answer_begun(said, self._marks, reasons=self._reasons)
