"""Requests that show whether a model answers at all: a question, then texts to embed, score, rank and classify."""

from __future__ import annotations

from dataclasses import replace

from schemas.kinds import KINDS
from workers.engines.base import GenerationRequest
from workers.engines.pooling import PoolingInput

_TEXT = "Hello."
_TOKENS = 16
"""The fewest tokens of an answer that each service takes."""


def first_requests(
    request_id: str, prompt: str, max_tokens: int, temperature: float | None = None, model_id: str | None = None
) -> tuple[GenerationRequest, ...]:
    """Return the requests in the order to try.

    Most models answer the first request; a reranker answers only the request to rank texts.
    """
    question = GenerationRequest(
        request_id, prompt, None, max_tokens, temperature, temperature_is_default=True, model_id=model_id
    )
    inputs = [PoolingInput(kind, (prompt,), (prompt,) if kind.model is not None else ()) for kind in KINDS]
    return (question, *(replace(question, prompt=None, pooling=each) for each in inputs))


def small_request(like: GenerationRequest) -> GenerationRequest:
    """Return a request of the same kind that a working model answers at once."""
    question, *others = first_requests(f"probe-{like.request_id}", _TEXT, _TOKENS, 0.0, like.model_id)
    kind = like.pooling.kind if like.pooling is not None else None
    return next((each for each in others if each.pooling is not None and each.pooling.kind is kind), question)
