"""The event: a result in its callback's envelope. All attempts send the same bytes."""

from __future__ import annotations

from typing import Literal

from pydantic_core import to_json

from schemas.bounded import WireModel
from schemas.codec import read_result, write_result
from schemas.job import Tenant
from schemas.outcome import Outcome
from schemas.result import Result

EventType = Literal[
    "inference.succeeded", "inference.failed", "inference.expired", "inference.cancelled", "inference.rejected"
]

_STORED_START = b'{"job_id":'


class EventData(Result):
    """The result, with the job's identifier also in `id`, as in OpenAI's events."""

    id: str
    """The job's identifier, as in `job_id`."""


class Event(WireModel):
    """A webhook's body, as a consumer reads it."""

    id: str
    """The `webhook-id`: the same on every attempt, so that a consumer can drop repeats."""
    object: Literal["event"] = "event"
    """The kind of object, as in OpenAI's events."""
    created_at: int
    """Unix seconds."""
    type: EventType
    """The outcome of the job, as an event type."""
    tenant: Tenant
    """The tenant of the event. A consumer refuses an event of another tenant, even if its signature is valid."""
    data: EventData
    """The result."""


def event_type(outcome: Outcome) -> str:
    """Return the type of the event for an outcome."""
    return f"inference.{outcome}"


def event_body(result: Result | bytes, webhook_id: str, tenant: str) -> bytes:
    """Return the webhook's body for a tenant's result. Stored bytes of a result are embedded unchanged.

    Raises InvalidResult if the bytes hold no result.
    """
    if isinstance(result, bytes):
        return stored_event_body(read_result(result), result, webhook_id, tenant)
    return _embedded(result, write_result(result), webhook_id, tenant)


def stored_event_body(result: Result, stored: bytes, webhook_id: str, tenant: str) -> bytes:
    """Return the webhook's body for a result that was read from its stored bytes."""
    # Only bytes of `write_result` can be embedded. Other bytes are rewritten, which gives equal bytes every time.
    if not (stored.startswith(_STORED_START) and stored.endswith(b"}")):
        stored = write_result(result)
    return _embedded(result, stored, webhook_id, tenant)


def _embedded(result: Result, stored: bytes, webhook_id: str, tenant: str) -> bytes:
    head = b'{"id":%b,"object":"event","created_at":%d,"type":"%b","tenant":%b,"data":{"id":%b,' % (
        to_json(webhook_id),
        result.created_at,
        event_type(result.outcome).encode(),
        to_json(tenant),
        to_json(result.job_id),
    )
    return b"".join((head, stored[1:], b"}"))
