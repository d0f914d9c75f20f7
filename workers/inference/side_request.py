"""Short requests to the engine beside a job's own: a rewriting of the question, a check of a sentence."""

from __future__ import annotations

from collections.abc import Callable

from schemas.codec import ReceivedJob
from schemas.job import Message
from workers.engines.base import GenerationRequest

Spend = Callable[[int], None]
"""Counts tokens of a job in its tenant's share of the engine."""


def side_request(received: ReceivedJob, name: str, content: str | None, max_tokens: int) -> GenerationRequest:
    """Return a greedy request with this user's message, for the job's model and with the job's priority.

    `name` is unique among the requests of one worker.
    """
    return GenerationRequest(
        request_id=f"{received.place.digest}-{name}",
        prompt=None,
        messages=(Message(role="user", content=content),),
        max_tokens=max_tokens,
        temperature=0.0,
        temperature_is_default=True,
        model_id=received.job.model_id,
        priority=received.priority,
    )
