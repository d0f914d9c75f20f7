"""`/v1/webhook_endpoints`: create, list, retrieve, update, delete, test, rotate; `/v1/webhook_event_types`.

Source: OpenAI's API reference, "Webhooks". `headers`, `enabled`, `rate_limit` and the types `inference.*` are our own.
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict
from sqlalchemy import Connection

from gateway.access.allowed import check_callback
from gateway.access.tenant_settings import TenantSettings
from gateway.door import query
from gateway.door.door import Door
from gateway.door.endpoint import Answer, Call
from gateway.door.noted import note_objects
from gateway.errors import NO_RETRY, ApiError, conflict, unavailable, validated
from gateway.paging import list_body
from gateway.webhooks import endpoints
from gateway.webhooks.endpoints import EVENT_TYPES, EndpointRow, EndpointTerms, EventType
from gateway.webhooks.fan_out import Sending
from schemas.bounded import BoundedModel
from telemetry.clock import unix_ms
from workers.delivery.post import Exhausted
from workers.egress import EgressPolicy, EgressRefused, check_url

_HINTED = 4
"""The hint of a secret shows this many of its characters."""


class WebhookRotation(BoundedModel):
    """The body of a rotation."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keep_old_secret_active_for_24_hours: bool = False
    """True if the old secret signs for one more day."""


class WebhookTestRequest(BoundedModel):
    """The body of a test."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    event_type: EventType
    """The type of the test event."""


async def create(call: Call) -> dict[str, Any]:
    """Register a webhook endpoint. The answer has its secret."""
    sending, now_ms = _sending(call.door), unix_ms(call.door.clock)
    terms = _terms(await call.body(), {}, call.door.callbacks)
    _require_allowed(await call.door.access.tenant(call.tenant), terms.url)
    row = await call.write(endpoints.create, terms, now_ms)
    note_objects(call.request, [row.id])
    return _with_secret(row, sending)


async def list_endpoints(call: Call) -> Answer:
    """List webhook endpoints."""
    page = await call.read(endpoints.page, query.page(call.request))
    return list_body([_shown(row, call.door.webhooks) for row in page.rows], has_more=page.has_more)


async def retrieve(call: Call) -> Answer:
    """Read a webhook endpoint."""
    return _shown(await _found(call), call.door.webhooks)


async def update(call: Call) -> dict[str, Any]:
    """Change a webhook endpoint. Members that the body lacks stay as they are."""
    body, door, settings = await call.body(), call.door, await call.door.access.tenant(call.tenant)

    def change(connection: Connection, tenant: str, identifier: str) -> EndpointRow:
        row = endpoints.find(connection, tenant, identifier)
        terms = _terms(body, endpoints.terms_of(row).model_dump(), door.callbacks)
        _require_allowed(settings, terms.url)
        return endpoints.update(connection, row, terms, unix_ms(door.clock))

    return _shown(await call.write(change, _id(call)), door.webhooks)


async def delete(call: Call) -> Answer:
    """Delete a webhook endpoint. Events that are on their way are still sent."""
    await call.write(endpoints.delete, _id(call))
    return {"id": _id(call), "object": "webhook_endpoint.deleted", "deleted": True}


async def rotate(call: Call) -> dict[str, Any]:
    """Give a webhook endpoint a new secret. The answer has it."""
    asked: WebhookRotation = await call.body()
    overlap, sending = asked.keep_old_secret_active_for_24_hours, _sending(call.door)
    row = await call.write(endpoints.rotate, _id(call), unix_ms(call.door.clock), overlap=overlap)
    return _with_secret(row, sending)


async def test(call: Call) -> dict[str, Any]:
    """Send a test event to a webhook endpoint. The answer has the status that it gave."""
    asked: WebhookTestRequest = await call.body()
    sending, row = _sending(call.door), await _found(call)
    _require_allowed(await call.door.access.tenant(call.tenant), row.url)
    try:
        outcome = await sending.test(row, asked.event_type)
    except Exhausted:
        raise unavailable("busy", "The gateway has no connection free; try again.") from None
    if outcome.status is None:
        reason = outcome.detail or outcome.reason
        raise conflict("webhook_endpoint_unreachable", f"The endpoint gave no HTTP answer: {reason}.", "url")
    told = {"webhook_endpoint_id": row.id, "event_type": asked.event_type, "status_code": outcome.status}
    return {"object": "webhook_endpoint.test", **told, "success": True}


async def event_types(_call: Call) -> Answer:
    """List the types of events that a webhook endpoint can take."""
    return {"object": "list", "data": list(EVENT_TYPES)}


def _sending(door: Door) -> Sending:
    """Return the keys of endpoints. Raises ApiError (409) without a keyring, since no request could be signed."""
    if door.webhooks is None:
        raise conflict("webhooks_unavailable", "The operator of this gateway has not set POSTBACK_KEYRING.")
    return door.webhooks


def _terms(body: Any, before: dict[str, Any], policy: EgressPolicy) -> EndpointTerms:
    """Return the terms of an endpoint, after replacing the members that the body sets. Raises ApiError (400).

    Null removes a rate limit, and sets no other member. The URL becomes ASCII, as the header of the record needs.
    """
    said = body if isinstance(body, dict) else {}
    said = {name: value for name, value in said.items() if value is not None or name == "rate_limit"}
    terms = validated(EndpointTerms, before | said if isinstance(body, dict) else body)
    try:
        return terms.model_copy(update={"url": str(check_url(terms.url, policy))})
    except EgressRefused as refused:
        raise ApiError(400, "invalid_value", f"url: must not be called: {refused}.", param="url") from None


def _require_allowed(settings: TenantSettings, url: str) -> None:
    """Refuse an endpoint outside the tenant's callback domains, as a job's callback is refused. Raises ApiError."""
    for problem in check_callback(settings, url, "url"):
        raise ApiError(403, "not_allowed", f"{problem}.", param="url", headers=NO_RETRY)


async def _found(call: Call) -> EndpointRow:
    return await call.read(endpoints.find, _id(call))


def _id(call: Call) -> str:
    return call.in_path("webhook_endpoint_id")


def _shown(row: EndpointRow, sending: Sending | None) -> dict[str, Any]:
    """Return an endpoint as the API shows it. Without a keyring, its secret has no hint."""
    times = {name: getattr(row, name) // 1000 for name in ("created_at", "updated_at")}
    hint = None if sending is None else f"whsec_…{sending.secret(row)[-_HINTED:]}"
    terms = {**endpoints.terms_of(row).model_dump(), "headers": dict.fromkeys(row.headers, "…")}
    return {"id": row.id, "object": "webhook_endpoint", **times, **terms, "signing_secret_hint": hint}


def _with_secret(row: EndpointRow, sending: Sending) -> dict[str, Any]:
    return {**_shown(row, sending), "signing_secret": sending.secret(row)}
