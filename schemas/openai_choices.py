"""The choices of OpenAI's answers, and log-probabilities in their two forms.

Source: OpenAI API reference, "The chat completion object" (`choices[].logprobs.content`) and "The completion object"
(`choices[].logprobs`, with `text_offset`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final, Literal

from schemas.result import Logprob, Result, ResultChoice, TokenLogprob

_PART_OF_A_CHARACTER: Final = "\N{REPLACEMENT CHARACTER}"


def choices_of(result: Result) -> list[ResultChoice]:
    """Return the answers of a job that succeeded."""
    if result.choices is not None:
        return result.choices
    reasons: dict[str | None, Literal["length", "tool_calls"]] = {"length": "length", "tool_calls": "tool_calls"}
    return [
        ResultChoice(
            index=0,
            text=result.text or "",
            refusal=result.refusal,
            reasoning=result.reasoning,
            finish_reason=reasons.get(result.finish_reason, "stop"),
            tool_calls=result.tool_calls,
            logprobs=result.logprobs,
        )
    ]


def chat_logprobs(logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    """Return the log-probabilities in the form of chat completions; None for an answer without them."""
    return {"content": token_objects(logprobs), "refusal": None} if logprobs is not None else None


def token_objects(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Return each token with its alternatives, in the form of chat completions and of responses."""
    return [{**_token(each), "top_logprobs": [_token(top) for top in each.top_logprobs or ()]} for each in logprobs]


def completion_logprobs(logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
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
