"""Results as OpenAI's answers: lines of a Batch's output file, and bodies of the endpoints.

Source: OpenAI API reference, "The request output object" of the Batch API, and the answers of /v1/chat/completions,
/v1/completions and /v1/responses. `kind_bodies` has the answers of the endpoints for texts, such as /v1/embeddings.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Final

from schemas.kind_bodies import ENDPOINTS, TextEndpoint
from schemas.openai import CHAT_COMPLETIONS, COMPLETIONS, RESPONSES
from schemas.openai_tools import call_items
from schemas.outcome import Outcome
from schemas.result import Logprob, Result, ResultChoice, TokenLogprob

BINARY: Final = "base64"
"""The `encoding_format` that OpenAI's SDKs ask for: each embedding as little-endian float32 numbers in base64."""
_PART_OF_A_CHARACTER: Final = "\N{REPLACEMENT CHARACTER}"
_TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")
_ERROR_STATUS = {Outcome.REJECTED: 400, Outcome.FAILED: 500}
_Answer = Result | ResultChoice


def output_line(result: Result, url: str) -> dict[str, Any]:
    """Return the result's line of a Batch's output or error file; `url` is the URL of the input line, one of URLS."""
    line: dict[str, Any] = {"id": f"batch_req_{result.job_id}", "custom_id": result.custom_id}
    if result.outcome in (Outcome.EXPIRED, Outcome.CANCELLED):
        message = result.error.message if result.error else f"The job was {result.outcome}."
        return {**line, "response": None, "error": {"code": f"batch_{result.outcome}", "message": message}}
    status = _ERROR_STATUS.get(result.outcome, 200)
    body = answer_body(result, url) if status == 200 else _error_body(result, status)
    return {**line, "response": {"status_code": status, "request_id": result.job_id, "body": body}, "error": None}


def answer_body(result: Result, url: str) -> dict[str, Any]:
    """Return the body of the answer to a request that succeeded; `url` is the request's URL, one of URLS."""
    return _ANSWERS[url](result)


def _chat_answer(result: Result) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{result.job_id}",
        "object": "chat.completion",
        "created": result.created_at,
        "model": result.model_id or "",
        "choices": [_chat_choice(index, answer) for index, answer in _choices_of(result)],
        "usage": _usage(result),
        **_ours(result),
    }


def _chat_choice(index: int, answer: _Answer) -> dict[str, Any]:
    content = answer.text or "" if answer.refusal is None else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": answer.refusal}
    if answer.tool_calls is not None:
        message |= {"content": answer.text or None, "tool_calls": [call.model_dump() for call in answer.tool_calls]}
    if answer.reasoning is not None:
        # OpenAI shows no reasoning. vLLM names the member `reasoning`, and others, such as DeepSeek,
        # `reasoning_content`. Set both.
        message |= {"reasoning": answer.reasoning, "reasoning_content": answer.reasoning}
    return {
        "index": index,
        "message": message,
        "logprobs": _chat_logprobs(answer.logprobs),
        "finish_reason": _reason_of(answer),
    }


def _completion_answer(result: Result) -> dict[str, Any]:
    return {
        "id": f"cmpl-{result.job_id}",
        "object": "text_completion",
        "created": result.created_at,
        "model": result.model_id or "",
        "choices": [
            {
                "index": index,
                "text": answer.text or "",
                "logprobs": _completion_logprobs(answer.logprobs),
                "finish_reason": _reason_of(answer),
            }
            for index, answer in _choices_of(result)
        ],
        "usage": _usage(result),
        **_ours(result),
    }


def _response_answer(result: Result) -> dict[str, Any]:
    cut = result.finish_reason == "length"
    calls = call_items(result.tool_calls or ())
    status = "incomplete" if cut else "completed"
    logprobs = _token_objects(result.logprobs or ())
    part: dict[str, Any] = {
        "type": "output_text",
        "text": result.text or "",
        "annotations": [],
        "logprobs": logprobs,
    }
    if result.refusal is not None:
        part = {"type": "refusal", "refusal": result.refusal}
    message = {
        "id": f"msg_{result.job_id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [part],
    }
    return {
        "id": f"resp_{result.job_id}",
        "object": "response",
        "created_at": result.created_at,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": None,
        "metadata": result.metadata,
        "model": result.model_id or "",
        "output": [*_reasoning_items(result), *([message] if result.text or not calls else []), *calls],
        "parallel_tool_calls": False,
        "temperature": None,
        "tool_choice": "none",
        "tools": [],
        "top_p": None,
        "usage": _response_usage(result),
        **_ours(result),
    }


def _answer_with_texts(endpoint: TextEndpoint, result: Result) -> dict[str, Any]:
    usage = result.usage
    return {
        **endpoint.answer(result),
        "model": result.model_id or "",
        "usage": usage.model_dump(include={"prompt_tokens", "total_tokens"}) if usage is not None else None,
        **_ours(result),
    }


def in_binary(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the body of an answer with embeddings in the `encoding_format` BINARY."""
    data = [{**each, "embedding": _packed(each["embedding"])} for each in answer["data"]]
    return {**answer, "data": data}


def _packed(numbers: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def _reasoning_items(result: Result) -> list[dict[str, Any]]:
    """Return the reasoning as an item of a Response's output, as vLLM's servers show it."""
    if result.reasoning is None:
        return []
    content = [{"type": "reasoning_text", "text": result.reasoning}]
    item = {"id": f"rs_{result.job_id}", "type": "reasoning", "summary": [], "content": content, "status": "completed"}
    return [item]


_ANSWERS: dict[str, Callable[[Result], dict[str, Any]]] = {
    CHAT_COMPLETIONS: _chat_answer,
    COMPLETIONS: _completion_answer,
    RESPONSES: _response_answer,
    **{endpoint.url: partial(_answer_with_texts, endpoint) for endpoint in ENDPOINTS.values()},
}


def _usage(result: Result) -> dict[str, Any] | None:
    """Return the tokens in the form of chat completions and completions."""
    if result.usage is None:
        return None
    usage: dict[str, Any] = {name: getattr(result.usage, name) for name in _TOKENS}
    if result.usage.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": result.usage.cached_tokens}
    if result.usage.reasoning_tokens is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": result.usage.reasoning_tokens}
    return usage


def _response_usage(result: Result) -> dict[str, Any] | None:
    if result.usage is None:
        return None
    return {
        "input_tokens": result.usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": result.usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": result.usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": result.usage.reasoning_tokens or 0},
        "total_tokens": result.usage.total_tokens,
    }


def _ours(result: Result) -> dict[str, Any]:
    """Return Postback's own fields, which OpenAI's formats lack and OpenAI's clients ignore."""
    if result.citations or result.answer is not None:
        names = {"confidence", "sources", "citations", "answer", "notes"}
        return {"postback": result.model_dump(mode="json", exclude_none=True, include=names)}
    sure = {} if result.confidence is None else {"confidence": result.confidence}
    return {"postback": {**sure, "sources": result.sources, "citations": [], "notes": result.notes}}


def _error_body(result: Result, status: int) -> dict[str, Any]:
    kind = "invalid_request_error" if status == 400 else "server_error"
    code = result.error.code if result.error else str(result.outcome)
    message = result.error.message if result.error else f"The job {result.outcome}."
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _choices_of(result: Result) -> Sequence[tuple[int, _Answer]]:
    """Return the number and the members of each answer of a job that succeeded. A single answer is the result itself.

    A result has every member of its choices, and a choice made from it would cost a third of an output line.
    """
    return [(0, result)] if result.choices is None else [(each.index, each) for each in result.choices]


def _reason_of(answer: _Answer) -> str:
    return answer.finish_reason if answer.finish_reason in ("length", "tool_calls") else "stop"


def _chat_logprobs(logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """Return the log-probabilities in the form of chat completions; None for an answer without them."""
    return {"content": _token_objects(logprobs), "refusal": None} if logprobs is not None else None


def _token_objects(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return each token with its alternatives, in the form of chat completions and of responses."""
    return [{**_token(each), "top_logprobs": [_token(top) for top in each.top_logprobs or ()]} for each in logprobs]


def _completion_logprobs(logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """Return the log-probabilities in the form of completions; None for an answer without them.

    `text_offset` counts Unicode code points from the answer's start.
    """
    if logprobs is None:
        return None
    ends = accumulate((len(each.token) for each in logprobs), initial=0)
    tops = [{top.token: top.logprob for top in each.top_logprobs or ()} for each in logprobs]
    return {
        "tokens": [each.token for each in logprobs],
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": tops if any(tops) else None,
        "text_offset": [*ends][:-1],
    }


def _token(found: Logprob) -> dict[str, Any]:
    is_whole = _PART_OF_A_CHARACTER not in found.token
    return {"token": found.token, "logprob": found.logprob, "bytes": [*found.token.encode()] if is_whole else None}
