"""The event: a result in the envelope that its callback gets. Its bytes are the same on every attempt."""

from __future__ import annotations

from typing import Literal

from pydantic_core import to_json

from schemas.codec import read_result, write_result
from schemas.job import Tenant, WireModel
from schemas.result import Outcome, Result

EventType = Literal[
    "inference.succeeded", "inference.failed", "inference.expired", "inference.cancelled", "inference.rejected"
]

_STORED_START = b'{"job_id":'


class EventData(Result):
    """The result, with its job's identifier also where OpenAI's events have it."""

    id: str


class Event(WireModel):
    """A webhook's body as its reader sees it."""

    id: str
    """The `webhook-id`: the same on every attempt, so that a consumer knows repeats by it."""
    object: Literal["event"] = "event"
    created_at: int
    """Unix seconds."""
    type: EventType
    tenant: Tenant
    """Who the event is for. A consumer refuses an event that names another tenant, whoever signed it."""
    data: EventData


def event_type(outcome: Outcome) -> str:
    """What the event for this outcome is called."""
    return f"inference.{outcome}"


def event_body(result: Result | bytes, webhook_id: str, tenant: str) -> bytes:
    """The webhook's body for a tenant's result or for the stored bytes of one, which go into it as they are.

    Raises InvalidResult where the bytes hold no result.
    """
    if isinstance(result, bytes):
        stored, result = result, read_result(result)
        # Only what write_result wrote can be spliced; anything else is written anew, which is as repeatable.
        if not (stored.startswith(_STORED_START) and stored.endswith(b"}")):
            stored = write_result(result)
    else:
        stored = write_result(result)
    head = b'{"id":%b,"object":"event","created_at":%d,"type":"%b","tenant":%b,"data":{"id":%b,' % (
        to_json(webhook_id),
        result.created_at,
        event_type(result.outcome).encode(),
        to_json(tenant),
        to_json(result.job_id),
    )
    return b"".join((head, stored[1:], b"}"))
