"""Why generation ended, by the words that servers and vLLM have for it. Only `stop` and `length` leave an answer."""

from __future__ import annotations

from workers.engines.base import FinishReason

_SAME_MEANING: dict[FinishReason, tuple[str, ...]] = {
    "stop": ("eos", "eos_token", "stop_sequence", "end_turn", "complete", "completed"),
    "length": ("max_tokens", "model_length"),
    "abort": ("cancelled",),
    "content_filter": ("safety", "refusal"),
    "tool_calls": ("function_call", "tool_use"),
    "repetition": (),
}
"""Beside OpenAI's and vLLM's own: words of TGI, Mistral, Anthropic, Gemini and Cohere in OpenAI's protocol."""

_MEANINGS = {word: reason for reason, others in _SAME_MEANING.items() for word in (reason, *others)}
_FAILURES = frozenset(("error", "insufficient_system_resource"))


def is_failure(said: str | None) -> bool:
    """Whether the engine says that it failed, so that another try may go well (vLLM, Mistral, OpenRouter; DeepSeek)."""
    return said is not None and said.lower() in _FAILURES


def finish_reason(said: str | None) -> FinishReason:
    """The reason that an engine gives, in whichever letters. `other` where the word is not known here.

    Where it gives none it counts as `stop`, as vLLM's own server has it.
    """
    return _MEANINGS.get(said.lower(), "other") if said else "stop"
