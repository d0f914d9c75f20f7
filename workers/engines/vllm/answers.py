"""vLLM's outputs and errors as completions and errors of an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from workers.engines.answers import Alternative, Answer, Choice, Token, is_failure
from workers.engines.base import (
    Completion,
    EngineDied,
    EngineError,
    EngineFailed,
    EngineUnavailable,
    GenerationRequest,
    RequestRejected,
)
from workers.engines.body import FIELDS
from workers.engines.vllm.chat import VllmChat
from workers.engines.vllm.loading import short
from workers.engines.vllm.thinking import Thinking


def completion_of(output: Any, chat: VllmChat, thinking: Thinking | None = None) -> Completion:
    """Return the first answer of the final output; `further` has the other answers.

    The completion is aborted if one of the answers is. Raises EngineError if vLLM ended an answer with an error.
    """
    answer = Answer(chat.request)
    thought = [_read(each, answer.choice(at), chat, thinking) for at, each in enumerate(output.outputs)]
    completion = answer.completion()
    is_aborted = any(each.finish_reason == "abort" for each in output.outputs)
    return replace(
        completion,
        finish_reason="abort" if is_aborted else completion.finish_reason,
        prompt_tokens=len(chat.tokens),
        completion_tokens=sum(len(each.token_ids) for each in output.outputs),
        reasoning_tokens=sum(thought) or None,
        cached_tokens=output.num_cached_tokens,
    )


def _read(found: Any, choice: Choice, chat: VllmChat, thinking: Thinking | None) -> int:
    """Add one of vLLM's answers to the choice, and return the number of its tokens that are reasoning."""
    text, ids, logprobs, first = found.text, found.token_ids, found.logprobs, 0
    if is_failure(found.finish_reason):
        raise _ended_by_an_error(chat.request, len(ids))
    if thinking is not None and not grammar_is_first(chat, thinking):
        whole = thinking.parted(text, is_open=thinking.is_open(chat.tokens), keeps_special_tokens=chat.may_call)
        if whole.reasoning is not None:
            choice.think(whole.reasoning)
            first = thinking.tokens(text, ids, whole)
        text = whole.text
    if chat.may_call:
        text, calls = chat.calls(text, ids[first:])
        text = thinking.shown(text) if thinking is not None else text  # the marks of calls are special tokens too
        for call in calls:
            choice.call(call.function.name, call.function.arguments, call.id)
    choice.say(text)
    choice.end(found.finish_reason)
    choice.mean_logprob = _mean_logprob(found, first)
    if chat.request.top_logprobs is not None and logprobs is not None:
        choice.likely([*_tokens(logprobs, first)])
    return first


def _mean_logprob(found: Any, first: int) -> float | None:
    """Return the mean log-probability of an answer's tokens from this one on; None without such tokens."""
    if found.cumulative_logprob is None or first >= len(found.token_ids):
        return None
    if not first:
        return float(found.cumulative_logprob) / len(found.token_ids)
    values = [found.logprobs.logprobs[at] for at in found.logprobs.start_indices[first:]]
    return float(sum(values)) / len(values)


def _tokens(found: Any, first: int) -> Iterator[Token]:
    """Yield the tokens of vLLM's `FlatLogprobs` from this one on. At each place the chosen token comes first."""
    names, values = found.decoded_tokens, found.logprobs
    pairs: list[Alternative] = [{"token": name or "", "logprob": at} for name, at in zip(names, values, strict=True)]
    for start, end in zip(found.start_indices[first:], found.end_indices[first:], strict=True):
        yield {"token": names[start] or "", "logprob": values[start], "top_logprobs": pairs[start + 1 : end]}


def grammar_is_first(chat: VllmChat, thinking: Thinking) -> bool:
    """True if JSON or a demanded call begins with the first token, so that the output has no reasoning.

    Reasoning comes first if the prompt ends inside an open reasoning, or if the job asks for reasoning.
    """
    request = chat.request
    if not chat.demands_call and request.response_format is None:
        return False
    return thinking.parser is None or not (request.reasons or thinking.is_open(chat.tokens))


def answer_teller(chat: VllmChat, thinking: Thinking | None) -> Callable[[str], None] | None:
    """Return the function that takes the output so far, and tells `on_delta` what the answer in it gained.

    None if the request has no `on_delta`.
    """
    on_delta, read, told = chat.request.on_delta, 0, 0
    if on_delta is None:
        return None
    growth = thinking.growth(chat.request, chat.tokens) if thinking is not None else None

    def tell(output: str) -> None:
        nonlocal read, told
        gained, read = output[read:], len(output)
        if thinking is not None and growth is not None:
            gained = thinking.shown(growth.add(gained))
        if gained:
            on_delta(gained, told)
            told += len(gained)

    return tell


# -- Errors --
@contextmanager
def as_engine_errors(request: GenerationRequest, died: Callable[[], None]) -> Iterator[None]:
    """During the block, turn vLLM's errors into EngineErrors about this request.

    `died` is called first if the engine's process died.
    """
    from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMServerError
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        died()
        raise EngineDied("the engine's process ended with this request in flight") from error
    except VLLMClientError as error:
        raise _refusal(request, error) from error
    except GracefulHTTPError as error:
        raise EngineUnavailable(f"the engine accepts no more requests now:  {type(error).__name__}") from error
    except VLLMServerError as error:
        raise EngineFailed(f"the engine failed: {type(error).__name__}") from error


def _refusal(request: GenerationRequest, error: Exception) -> RequestRejected:
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
