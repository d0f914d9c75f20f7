"""Finish reasons of servers and of vLLM, mapped to `FinishReason`.

The text of a completion without calls is an answer only if the finish reason is `stop` or `length`.
"""

from __future__ import annotations

from workers.engines.base import FinishReason

_SAME_MEANING: dict[FinishReason, tuple[str, ...]] = {
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
