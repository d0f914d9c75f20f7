"""`/v1/webhook_endpoints`: create, list, retrieve, update, delete, test, rotate; `/v1/webhook_event_types`.

Source: OpenAI's API reference, "Webhooks". `headers`, `enabled` and the types `inference.*` are Postback's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from gateway.access import Principal, Scope
from gateway.access.allowed import check_callback
from gateway.access.tenant_settings import TenantSettings
from gateway.batches.paging import list_body
from gateway.door import query
from gateway.door.body import parse_json, read_body
from gateway.door.door import Door
from gateway.door.errors import NO_RETRY, ApiError, conflict, not_found, unavailable
from gateway.door.noted import note_objects
from gateway.door.webhook_terms import changed_terms, event_type_of, keeps_old_secret, new_terms
from gateway.webhooks import endpoints
from gateway.webhooks.endpoints import MOST_ENDPOINTS, EndpointRow, EndpointTerms, TooManyEndpoints
from gateway.webhooks.event_types import EVENT_TYPES
from gateway.webhooks.sending import Sending
from telemetry.clock import unix_ms
from workers.delivery.exhaustion import Exhausted

MOST_BODY_BYTES = 64 * 1024
_HINTED = 4
"""The hint of a secret shows this many of its characters."""


def routes(door: Door) -> list[BaseRoute]:
    """Return the routes of webhook endpoints."""

    async def create(request: Request) -> JSONResponse:
        principal, sending = await door.principal(request, Scope.WEBHOOKS), _sending(door)
        terms, now_ms = new_terms(await _json(request), door.callbacks), unix_ms(door.clock)
        _require_allowed(await door.access.tenant(principal.tenant), terms)
        try:
            row = await door.store.write(lambda open_: endpoints.create(open_, principal.tenant, terms, now_ms))
        except TooManyEndpoints:
            message = f"The tenant has {MOST_ENDPOINTS} webhook endpoints, the most it may have; delete one first."
            raise conflict("too_many_webhook_endpoints", message) from None
        note_objects(request, [row.id])
        return JSONResponse(_with_secret(row, sending))

    async def list_endpoints(request: Request) -> JSONResponse:
        principal, sending = await door.principal(request, Scope.READ), _sending(door)
        query.only(request, ("after", "limit"))
        wanted = query.page(request)
        rows, more = await door.store.read(
            lambda open_: endpoints.page(open_, principal.tenant, wanted.limit, wanted.after)
        )
        return JSONResponse(list_body([_shown(row, sending) for row in rows], has_more=more))

    async def retrieve(request: Request) -> JSONResponse:
        principal, sending = await door.principal(request, Scope.READ), _sending(door)
        return JSONResponse(_shown(await _found(door, principal, request), sending))

    async def update(request: Request) -> JSONResponse:
        principal, sending = await door.principal(request, Scope.WEBHOOKS), _sending(door)
        body, identifier, now_ms = await _json(request), _id(request), unix_ms(door.clock)
        settings = await door.access.tenant(principal.tenant)

        def change(open_: Connection) -> EndpointRow | None:
            row = endpoints.find(open_, principal.tenant, identifier)
            if row is None:
                return None
            terms = changed_terms(body, endpoints.terms_of(row), door.callbacks)
            _require_allowed(settings, terms)
            return endpoints.update(open_, row, terms, now_ms)

        return JSONResponse(_shown(_present(await door.store.write(change), identifier), sending))

    async def delete(request: Request) -> JSONResponse:
        principal, identifier = await door.principal(request, Scope.WEBHOOKS), _id(request)
        if not await door.store.write(lambda open_: endpoints.delete(open_, principal.tenant, identifier)):
            raise not_found("webhook_endpoint", identifier)
        return JSONResponse({"id": identifier, "object": "webhook_endpoint.deleted", "deleted": True})

    async def event_types(request: Request) -> JSONResponse:
        await door.principal(request, Scope.READ)
        return JSONResponse({"object": "list", "data": list(EVENT_TYPES)})

    one = "/v1/webhook_endpoints/{webhook_endpoint_id}"
    return [
        Route("/v1/webhook_event_types", event_types),
        Route("/v1/webhook_endpoints", create, methods=["POST"]),
        Route("/v1/webhook_endpoints", list_endpoints),
        Route(one, retrieve),
        Route(one, update, methods=["POST"]),
        Route(one, delete, methods=["DELETE"]),
        *_secret_routes(door, one),
    ]


def _secret_routes(door: Door, one: str) -> list[BaseRoute]:
    async def rotate(request: Request) -> JSONResponse:
        principal, sending = await door.principal(request, Scope.WEBHOOKS), _sending(door)
        overlap, identifier, now_ms = (
            keeps_old_secret(await _json(request, empty={})),
            _id(request),
            unix_ms(door.clock),
        )
        row = await door.store.write(
            lambda open_: endpoints.rotate(open_, principal.tenant, identifier, now_ms, overlap=overlap)
        )
        return JSONResponse(_with_secret(_present(row, identifier), sending))

    async def test(request: Request) -> JSONResponse:
        principal, sending = await door.principal(request, Scope.WEBHOOKS), _sending(door)
        kind = event_type_of(await _json(request))
        row = await _found(door, principal, request)
        return JSONResponse(await _sent(row, kind, sending))

    return [
        Route(f"{one}/rotate_secret", rotate, methods=["POST"]),
        Route(f"{one}/test", test, methods=["POST"]),
    ]


def _require_allowed(settings: TenantSettings, terms: EndpointTerms) -> None:
    """Refuse an endpoint outside the tenant's callback domains, as a job's callback is refused. Raises ApiError."""
    for problem in check_callback(settings, terms.url, "url"):
        raise ApiError(403, "not_allowed", f"{problem}.", param="url", headers=NO_RETRY)


def _sending(door: Door) -> Sending:
    """Return the keys of endpoints. Raises ApiError (409) without a keyring, since no request could be signed."""
    if door.webhooks is None:
        raise conflict("webhooks_unavailable", "The operator of this gateway has not set POSTBACK_KEYRING.")
    return door.webhooks


async def _json(request: Request, empty: Any = None) -> Any:
    body = await read_body(request, MOST_BODY_BYTES)
    return empty if empty is not None and not body else parse_json(body)


async def _found(door: Door, principal: Principal, request: Request) -> EndpointRow:
    identifier = _id(request)
    row = await door.store.read(lambda open_: endpoints.find(open_, principal.tenant, identifier))
    return _present(row, identifier)


def _present(row: EndpointRow | None, identifier: str) -> EndpointRow:
    if row is None:
        raise not_found("webhook_endpoint", identifier)
    return row


def _id(request: Request) -> str:
    return str(request.path_params["webhook_endpoint_id"])


def _object(row: EndpointRow, secret: str) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "webhook_endpoint",
        "created_at": row.created_at // 1000,
        "updated_at": row.updated_at // 1000,
        "name": row.name,
        "url": row.url,
        "event_types": row.events,
        "signing_secret_hint": f"whsec_…{secret[-_HINTED:]}",
        "headers": dict.fromkeys(row.headers, "…"),
        "enabled": row.enabled,
    }


def _shown(row: EndpointRow, sending: Sending) -> dict[str, Any]:
    return _object(row, sending.secret(row))


def _with_secret(row: EndpointRow, sending: Sending) -> dict[str, Any]:
    secret = sending.secret(row)
    return {**_object(row, secret), "signing_secret": secret}


async def _sent(row: EndpointRow, kind: str, sending: Sending) -> Mapping[str, Any]:
    """POST a sample event to the endpoint.

    Raises ApiError: 409 if no HTTP answer came, 503 if no connection is free.
    """
    try:
        outcome = await sending.test(row, kind)
    except Exhausted:
        raise unavailable("busy", "The gateway has no connection free; try again.") from None
    if outcome.status is None:
        reason = outcome.detail or outcome.reason
        raise conflict("webhook_endpoint_unreachable", f"The endpoint gave no HTTP answer: {reason}.", "url")
    return {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": row.id,
        "event_type": kind,
        "status_code": outcome.status,
        "success": True,
    }
