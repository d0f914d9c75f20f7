"""Types of the events that a webhook endpoint may take.

`batch.*` and `response.*` are OpenAI's, with the object's id as their data. `inference.*` are Postback's own, with the
whole result. Source: OpenAI's API reference, "Webhook events".
"""

from __future__ import annotations

from typing import Final

from schemas.outcome import Outcome
from schemas.result import Result

BATCH_TYPES: Final = ("batch.completed", "batch.failed", "batch.expired", "batch.cancelled")
RESPONSE_TYPES: Final = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
INFERENCE_TYPES: Final = tuple(f"inference.{outcome}" for outcome in Outcome)
EVENT_TYPES: Final = (*BATCH_TYPES, *RESPONSE_TYPES, *INFERENCE_TYPES)


def response_type(result: Result) -> str:
    """Return the type of the event for a response with this result."""
    if result.outcome is Outcome.CANCELLED:
        return "response.cancelled"
    if result.outcome is not Outcome.SUCCEEDED:
        return "response.failed"
    return "response.incomplete" if result.finish_reason == "length" else "response.completed"
