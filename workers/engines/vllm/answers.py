"""vLLM's outputs and errors as completions and errors of an engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from schemas.result import TokenLogprob
from workers.engines.base import (
    Completion,
    EngineError,
    EngineFailed,
    GenerationRequest,
    RequestRejected,
    token_logprob,
    with_calls,
)
from workers.engines.body import FIELDS
from workers.engines.finish import finish_reason, is_failure
from workers.engines.vllm.chat import VllmChat
from workers.engines.vllm.loading import short
from workers.engines.vllm.thinking import Thinking, confidence_from


def completion_of(output: Any, chat: VllmChat, thinking: Thinking | None = None) -> Completion:
    """Return the first answer of the final output; `further` has the other answers.

    The completion is aborted if one of the answers is. Raises EngineError if vLLM ended an answer with an error.
    """
    first, *further = [_answer(each, chat, thinking) for each in output.outputs]
    reasons = [each.finish_reason for each in (first, *further)]
    thought = [each.reasoning_tokens for each in (first, *further) if each.reasoning_tokens is not None]
    return replace(
        first,
        finish_reason="abort" if "abort" in reasons else first.finish_reason,
        prompt_tokens=len(chat.tokens),
        completion_tokens=sum(each.completion_tokens for each in (first, *further)),
        reasoning_tokens=sum(thought) if thought else None,
        cached_tokens=output.num_cached_tokens,
        further=tuple(further),
    )


def _answer(answer: Any, chat: VllmChat, thinking: Thinking | None) -> Completion:
    """Return one of the request's answers, with its own tokens."""
    request, count = chat.request, len(answer.token_ids)
    if is_failure(answer.finish_reason):
        raise _ended_by_an_error(request, count)
    confidence = None
    if answer.cumulative_logprob is not None and count:
        confidence = min(1.0, math.exp(answer.cumulative_logprob / count))
    completion = Completion(
        answer.text,
        finish_reason(answer.finish_reason),
        0,
        count,
        confidence,
        logprobs=_token_logprobs(answer.logprobs, request.top_logprobs),
    )
    if thinking is None or grammar_is_first(chat, thinking):
        return _with_calls_of(completion, chat, answer.token_ids, thinking)
    is_open = thinking.is_open(chat.tokens)
    whole = thinking.parted(answer.text, is_open=is_open, keeps_special_tokens=chat.may_call)
    if whole.reasoning is None:
        return _with_calls_of(replace(completion, text=whole.text), chat, answer.token_ids, thinking)
    tokens = thinking.tokens(answer.text, answer.token_ids, whole)
    reasoned = replace(
        completion,
        text=whole.text,
        reasoning=whole.reasoning,
        reasoning_tokens=tokens,
        confidence=confidence_from(answer.logprobs, tokens),
        logprobs=completion.logprobs[tokens:] if completion.logprobs is not None else None,
    )
    return _with_calls_of(reasoned, chat, answer.token_ids[tokens:], thinking)


def _with_calls_of(completion: Completion, chat: VllmChat, ids: Sequence[int], thinking: Thinking | None) -> Completion:
    """Return the completion with the calls that its text contains.

    Special tokens are removed from the text afterwards.
    """
    if not chat.may_call:
        return completion
    text, calls = chat.calls(completion.text, ids)
    return with_calls(replace(completion, text=thinking.shown(text) if thinking is not None else text), calls)


def _token_logprobs(found: Any, top: int | None) -> tuple[TokenLogprob, ...] | None:
    """Return vLLM's `FlatLogprobs` with tokens; None unless asked for. At each place the chosen token comes first."""
    if found is None or top is None:
        return None
    tokens = [token or "" for token in found.decoded_tokens]
    pairs = [*zip(tokens, found.logprobs, strict=True)]
    return tuple(
        token_logprob(
            tokens[start], found.logprobs[start], pairs[start + 1 : min(end, start + 1 + top)] if top else None
        )
        for start, end in zip(found.start_indices, found.end_indices, strict=True)
    )


def grammar_is_first(chat: VllmChat, thinking: Thinking) -> bool:
    """True if JSON or a demanded call begins with the first token, so that the output has no reasoning.

    Reasoning comes first if the prompt ends inside an open reasoning, or if the job asks for reasoning.
    """
    request = chat.request
    if not chat.demands_call and request.response_format is None:
        return False
    return thinking.parser is None or not (request.reasons or thinking.is_open(chat.tokens))


def refusal(request: GenerationRequest, error: Exception) -> RequestRejected:
    """Return vLLM's error as RequestRejected, with the job's field.

    The first argument of vLLM's error is the reason, without the refused value.
    """
    parameter = str(getattr(error, "parameter", None))
    if request.pooling is not None:
        field = request.pooling.kind.field
    elif parameter in FIELDS:
        field = FIELDS[parameter].field
    else:
        field = "response_format" if request.response_format is not None else request.asked_in
    return RequestRejected(field, short(str(error.args[0]) if error.args else type(error).__name__))


def _ended_by_an_error(request: GenerationRequest, tokens: int) -> EngineError:
    """Return the error for an answer that vLLM ended with an error.

    If the request has a response format, the cause is that no next token fits the format. Another try of this request
    would end in the same way.
    """
    if request.response_format is not None:
        return RequestRejected("response_format", "no answer can go on in the form that the field asks for")
    return EngineFailed("the engine failed at this request", wasted_tokens=tokens)
