"""Turns a response of OpenAI's Responses API into a completion.

Items and parts whose type this module does not know are left out, because newer versions of the API add types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from schemas.bounded import BoundedModel
from schemas.job import MAX_TOKENS, MAX_TOP_LOGPROBS
from schemas.result import TokenLogprob
from schemas.tools import MAX_TOOL_CALLS
from workers.engines.base import (
    Completion,
    EngineFailed,
    EngineUnavailable,
    GenerationRequest,
    RequestRejected,
    TokenCount,
    numbered_call,
    token_logprob,
    with_calls,
    with_refusal,
)
from workers.engines.finish import finish_reason
from workers.engines.openai_http.server import MAX_REASON_CHARACTERS

_MOST_ITEMS: Final = 1024
_MOST_PARTS: Final = 128
"""Cap on the parts of an item.

Without the caps on items and parts, 8 MiB of JSON would take half a gigabyte of memory, and block the event loop for
seconds.
"""
_KNOWN: Final = frozenset(
    ("message", "reasoning", "function_call", "output_text", "refusal", "summary_text", "reasoning_text")
)
_OF_THE_ACCOUNT: Final = frozenset(("insufficient_quota", "rate_limit_exceeded"))
"""Codes of failures that no job causes. Such a failure is not counted as a failed try of the job."""


def _unknown(kind: str) -> str:
    """Return the type if this module does not know it. Raises ValueError for a known type.

    Only parts of unknown types are left out; a part of a known type must have the form that the API describes.
    """
    if kind in _KNOWN:
        raise ValueError("has another form than the API describes")
    return kind


class _Alternative(TypedDict, total=False):
    """A token as a dictionary.

    The alternatives of a large answer would take gigabytes if they were pydantic models.
    """

    token: str
    logprob: float


class _Token(_Alternative, total=False):
    top_logprobs: Annotated[list[_Alternative], Field(max_length=MAX_TOP_LOGPROBS)] | None


class _Other(BoundedModel):
    """An item or a part of a newer version of the API."""

    type: Annotated[str, AfterValidator(_unknown)]


class _Text(BoundedModel):
    type: Literal["output_text", "summary_text", "reasoning_text"]
    text: str
    logprobs: list[_Token] | None = Field(default=None, max_length=MAX_TOKENS)


class _Refusal(BoundedModel):
    type: Literal["refusal"]
    refusal: str = ""


_Parts = Annotated[
    list[Annotated[_Text | _Refusal | _Other, Field(union_mode="left_to_right")]], Field(max_length=_MOST_PARTS)
]


class _Message(BoundedModel):
    type: Literal["message"]
    content: _Parts
    phase: str | None = None
    """`commentary` marks a remark before the answer, such as the announcement of a call."""


class _Thought(BoundedModel):
    type: Literal["reasoning"]
    summary: _Parts = Field(default_factory=list)
    content: _Parts | None = None
    """The reasoning itself, not its summary; servers of open models send it."""


class _Call(BoundedModel):
    type: Literal["function_call"]
    call_id: str | None = None
    name: str
    arguments: str = ""


class _InputDetails(BoundedModel):
    cached_tokens: TokenCount | None = None


class _OutputDetails(BoundedModel):
    reasoning_tokens: TokenCount | None = None


class _Usage(BoundedModel):
    input_tokens: TokenCount = 0
    output_tokens: TokenCount = 0
    input_tokens_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _Error(BoundedModel):
    code: str | None = None
    message: str | None = None


class _Incomplete(BoundedModel):
    reason: str | None = None


class ResponsesAnswer(BoundedModel):
    """The fields of a response that this engine reads."""

    status: str
    output: list[Annotated[_Message | _Thought | _Call | _Other, Field(union_mode="left_to_right")]] = Field(
        max_length=_MOST_ITEMS
    )
    error: _Error | None = None
    incomplete_details: _Incomplete | None = None
    usage: _Usage | None = None

    @property
    def messages(self) -> Sequence[_Message]:
        """The messages of the answer, without commentaries; all messages if each is a commentary."""
        messages = [item for item in self.output if isinstance(item, _Message)]
        return [message for message in messages if message.phase != "commentary"] or messages

    @property
    def end(self) -> str:
        """The reason why the generation ended: the status, or the reason that an incomplete response gives."""
        if self.status == "incomplete" and self.incomplete_details is not None and self.incomplete_details.reason:
            return self.incomplete_details.reason
        return self.status


def completion_of(body: bytes, request: GenerationRequest) -> Completion:
    """Return the answer to the request: its text up to a stop text, its reasoning and its calls.

    Raises EngineError if the service reports that it failed, and ValueError for a body that is no response object.
    """
    answer = ResponsesAnswer.model_validate_json(body)
    usage = answer.usage or _Usage()
    if answer.status == "failed":
        return _failed(answer.error or _Error(), usage, request)
    reason = finish_reason(answer.end)
    refusals = [part.refusal for message in answer.messages for part in message.content if isinstance(part, _Refusal)]
    parts = [part for message in answer.messages for part in message.content if isinstance(part, _Text)]
    whole = "".join(part.text for part in parts)
    text = min((whole.partition(stop)[0] for stop in request.sampling.get("stop", ())), key=len, default=whole)
    if len(text) < len(whole) and reason == "length":
        reason = "stop"
    logprobs = _logprobs(parts, request)
    completion = Completion(
        text,
        reason,
        usage.input_tokens,
        usage.output_tokens,
        math.exp(sum(each.logprob for each in logprobs) / len(logprobs)) if logprobs else None,
        reasoning=_reasoning(answer),
        reasoning_tokens=(usage.output_tokens_details or _OutputDetails()).reasoning_tokens or None,
        logprobs=logprobs,
        cached_tokens=(usage.input_tokens_details or _InputDetails()).cached_tokens,
    )
    if refusals:
        return with_refusal(completion, "".join(refusals))
    if not request.tools:
        return completion
    called = [item for item in answer.output if isinstance(item, _Call)][:MAX_TOOL_CALLS]
    calls = [numbered_call(call.call_id, call.name, call.arguments, at) for at, call in enumerate(called)]
    return with_calls(completion, calls)


def _failed(error: _Error, usage: _Usage, request: GenerationRequest) -> Completion:
    """Return an empty completion if the service's policy withheld the answer; else raise the failure's EngineError."""
    code = error.code or ""
    if "policy" in code:
        return Completion("", "content_filter", usage.input_tokens, usage.output_tokens)
    if code == "invalid_prompt" or "image" in code:
        field = "messages" if request.messages is not None else "prompt"
        reason = " ".join((error.message or "").split())[:MAX_REASON_CHARACTERS]
        raise RequestRejected(field, reason or "the service refuses the input")
    if code in _OF_THE_ACCOUNT:
        raise EngineUnavailable(f"the service failed with the code {code}")
    raise EngineFailed("the service failed while it generated", wasted_tokens=usage.output_tokens)


def _reasoning(answer: ResponsesAnswer) -> str | None:
    """Return the reasoning itself, or else its summary; None if the response has neither."""
    thoughts = [item for item in answer.output if isinstance(item, _Thought)]
    parts = [part for thought in thoughts for part in (thought.content or thought.summary)]
    return "\n\n".join(part.text for part in parts if isinstance(part, _Text)) or None


def _logprobs(parts: Sequence[_Text], request: GenerationRequest) -> tuple[TokenLogprob, ...] | None:
    """Return the log-probabilities of the tokens as generated; None if the job asks for none or the service gave none.

    A stop text cuts the answer's text, but not this list.
    """
    top = request.top_logprobs
    given = [part.logprobs for part in parts if part.logprobs is not None]
    if top is None or not given:
        return None
    tokens = [token for logprobs in given for token in logprobs][: request.max_tokens]
    return tuple(
        token_logprob(*_pair(token), [_pair(each) for each in (token.get("top_logprobs") or ())[:top]])
        for token in tokens
    )


def _pair(found: _Alternative) -> tuple[str, float]:
    return found.get("token", ""), found.get("logprob", -math.inf)
