"""`/v1/webhook_endpoints`: create, list, retrieve, update, delete, test, rotate; `/v1/webhook_event_types`.

Source: OpenAI's API reference, "Webhooks". `headers`, `enabled`, `rate_limit` and the types `inference.*` are our own.
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict
from sqlalchemy import Connection

from gateway.access.allowed import check_callback
from gateway.access.tenant_settings import TenantSettings
from gateway.batches.paging import list_body
from gateway.door import query
from gateway.door.door import Door
from gateway.door.endpoint import Answer, Call
from gateway.door.noted import note_objects
from gateway.errors import NO_RETRY, ApiError, conflict, not_found, unavailable, validated
from gateway.webhooks import endpoints
from gateway.webhooks.endpoints import (
    EVENT_TYPES,
    MOST_ENDPOINTS,
    EndpointRow,
    EndpointTerms,
    EventType,
    TooManyEndpoints,
)
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


async def create(call: Call) -> Answer:
    """Register a webhook endpoint. The answer has its secret."""
    sending = sending_of(call.door)
    row = await register(call.door, call.tenant, await call.body())
    note_objects(call.request, [row.id])
    return _with_secret(row, sending)


async def list_endpoints(call: Call) -> Answer:
    """List webhook endpoints."""
    sending, wanted = sending_of(call.door), query.page(call.request)
    rows, more = await call.read(endpoints.page, wanted.limit, wanted.after)
    return list_body([_shown(row, sending) for row in rows], has_more=more)


async def retrieve(call: Call) -> Answer:
    """Read a webhook endpoint."""
    sending = sending_of(call.door)
    return _shown(await _found(call.door, call.tenant, _id(call)), sending)


async def update(call: Call) -> Answer:
    """Change a webhook endpoint. Members that the body lacks stay as they are."""
    sending = sending_of(call.door)
    return _shown(await change(call.door, call.tenant, _id(call), await call.body()), sending)


async def delete(call: Call) -> Answer:
    """Delete a webhook endpoint. Events that are on their way are still sent."""
    await remove(call.door, call.tenant, _id(call))
    return {"id": _id(call), "object": "webhook_endpoint.deleted", "deleted": True}


async def rotate(call: Call) -> Answer:
    """Give a webhook endpoint a new secret. The answer has it."""
    asked: WebhookRotation = await call.body()
    overlap, sending = asked.keep_old_secret_active_for_24_hours, sending_of(call.door)
    return _with_secret(await begin_secret(call.door, call.tenant, _id(call), overlap=overlap), sending)


async def test(call: Call) -> Answer:
    """Send a test event to a webhook endpoint. The answer has the status that it gave."""
    asked: WebhookTestRequest = await call.body()
    status = await send_sample(call.door, call.tenant, _id(call), asked.event_type)
    told = {"webhook_endpoint_id": _id(call), "event_type": asked.event_type, "status_code": status, "success": True}
    return {"object": "webhook_endpoint.test", **told}


async def event_types(_call: Call) -> Answer:
    """List the types of events that a webhook endpoint can take."""
    return {"object": "list", "data": list(EVENT_TYPES)}


# -- the work, for the API and the console page ------------------------------------------------------------------------


def sending_of(door: Door) -> Sending:
    """Return the keys of endpoints. Raises ApiError (409) without a keyring, since no request could be signed."""
    if door.webhooks is None:
        raise conflict("webhooks_unavailable", "The operator of this gateway has not set POSTBACK_KEYRING.")
    return door.webhooks


async def register(door: Door, tenant: str, body: Any) -> EndpointRow:
    """Write the endpoint that the body describes. Raises ApiError (400, 403, 409) and StoreAway."""
    terms, now_ms = _terms(body, {}, door.callbacks), unix_ms(door.clock)
    _require_allowed(await door.access.tenant(tenant), terms.url)
    try:
        return await door.store.write(lambda open_: endpoints.create(open_, tenant, terms, now_ms))
    except TooManyEndpoints:
        message = f"The tenant has {MOST_ENDPOINTS} webhook endpoints, the most it may have; delete one first."
        raise conflict("too_many_webhook_endpoints", message) from None


async def change(door: Door, tenant: str, identifier: str, body: Any) -> EndpointRow:
    """Replace the members that the body has. Raises ApiError (400, 403, 404) and StoreAway."""
    now_ms, settings = unix_ms(door.clock), await door.access.tenant(tenant)

    def change_row(open_: Connection) -> EndpointRow | None:
        row = endpoints.find(open_, tenant, identifier)
        if row is None:
            return None
        terms = _terms(body, endpoints.terms_of(row).model_dump(), door.callbacks)
        _require_allowed(settings, terms.url)
        return endpoints.update(open_, row, terms, now_ms)

    return _present(await door.store.write(change_row), identifier)


async def begin_secret(door: Door, tenant: str, identifier: str, *, overlap: bool) -> EndpointRow:
    """Give the endpoint its next secret; with `overlap`, the old one signs for a day too. Raises ApiError (404)."""
    now_ms = unix_ms(door.clock)
    row = await door.store.write(lambda open_: endpoints.rotate(open_, tenant, identifier, now_ms, overlap=overlap))
    return _present(row, identifier)


async def remove(door: Door, tenant: str, identifier: str) -> None:
    """Delete the endpoint. Raises ApiError (404) and StoreAway."""
    if not await door.store.write(lambda open_: endpoints.delete(open_, tenant, identifier)):
        raise not_found("webhook_endpoint", identifier)


async def send_sample(door: Door, tenant: str, identifier: str, kind: str) -> int:
    """POST a sample event to the endpoint, and return the status of its answer.

    Raises ApiError: 403 if the tenant's callbacks may not go there by now, 404, 409 if no HTTP answer came, 503 if no
    connection is free.
    """
    sending = sending_of(door)
    row = await _found(door, tenant, identifier)
    _require_allowed(await door.access.tenant(tenant), row.url)
    try:
        outcome = await sending.test(row, kind)
    except Exhausted:
        raise unavailable("busy", "The gateway has no connection free; try again.") from None
    if outcome.status is None:
        reason = outcome.detail or outcome.reason
        raise conflict("webhook_endpoint_unreachable", f"The endpoint gave no HTTP answer: {reason}.", "url")
    return outcome.status


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


async def _found(door: Door, tenant: str, identifier: str) -> EndpointRow:
    return _present(await door.store.read(lambda open_: endpoints.find(open_, tenant, identifier)), identifier)


def _present(row: EndpointRow | None, identifier: str) -> EndpointRow:
    if row is None:
        raise not_found("webhook_endpoint", identifier)
    return row


# -- requests and answers ----------------------------------------------------------------------------------------------


def _id(call: Call) -> str:
    return call.in_path("webhook_endpoint_id")


def _shown(row: EndpointRow, sending: Sending) -> dict[str, Any]:
    times = {name: getattr(row, name) // 1000 for name in ("created_at", "updated_at")}
    hint = f"whsec_…{sending.secret(row)[-_HINTED:]}"
    terms = {**endpoints.terms_of(row).model_dump(), "headers": dict.fromkeys(row.headers, "…")}
    return {"id": row.id, "object": "webhook_endpoint", **times, **terms, "signing_secret_hint": hint}


def _with_secret(row: EndpointRow, sending: Sending) -> dict[str, Any]:
    return {**_shown(row, sending), "signing_secret": sending.secret(row)}
