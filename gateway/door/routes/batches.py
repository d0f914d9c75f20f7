"""`/v1/batches`: create, list, retrieve, cancel. Source: OpenAI's API reference, "Batch"."""

from __future__ import annotations

import json

from pydantic_core import to_json
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from gateway.accept.idempotency import StoredAnswer
from gateway.access import Principal, Scope
from gateway.batches import orders
from gateway.batches.orders import BatchTerms, batch_object, batch_terms
from gateway.batches.paging import list_body, page_query
from gateway.door.accepting import response_of, write_once
from gateway.door.body import parse_json, read_body
from gateway.door.cancelling import cancel_batch
from gateway.door.door import Door
from gateway.door.noted import note_objects
from gateway.door.query import only
from gateway.door.submitted import traceparent_of
from producers.identity import new_hex
from telemetry.clock import unix_ms

MOST_BODY_BYTES = 64 * 1024
MOST_LISTED, LISTED = 100, 20


def routes(door: Door) -> list[BaseRoute]:
    """Return the routes of batches."""

    async def create(request: Request) -> Response:
        principal = await door.principal(request, Scope.SUBMIT)
        body = await read_body(request, MOST_BODY_BYTES)
        made = await _created(door, principal, request, body, batch_terms(parse_json(body)))
        door.batches_changed()
        note_objects(request, [json.loads(made.body)["id"]])
        return response_of(made)

    async def list_batches(request: Request) -> JSONResponse:
        principal = await door.principal(request, Scope.READ)
        only(request, ("after", "limit", "order"))
        query = page_query(request.query_params, most=MOST_LISTED, default=LISTED, kind="batch")
        page = await door.store.read(lambda connection: orders.page(connection, principal.tenant, query))
        return JSONResponse(list_body([batch_object(row) for row in page.rows], has_more=page.has_more))

    async def retrieve(request: Request) -> JSONResponse:
        principal = await door.principal(request, Scope.READ)
        identifier = request.path_params["batch_id"]
        row = await door.store.read(lambda connection: orders.find(connection, principal.tenant, identifier))
        return JSONResponse(batch_object(row))

    async def cancel(request: Request) -> JSONResponse:
        principal = await door.principal(request, Scope.CANCEL)
        return JSONResponse(batch_object(await cancel_batch(door, principal, request.path_params["batch_id"])))

    return [
        Route("/v1/batches", create, methods=["POST"]),
        Route("/v1/batches", list_batches),
        Route("/v1/batches/{batch_id}", retrieve),
        Route("/v1/batches/{batch_id}/cancel", cancel, methods=["POST"]),
    ]


async def _created(door: Door, principal: Principal, request: Request, body: bytes, terms: BatchTerms) -> StoredAnswer:
    """Create a batch, once for an `Idempotency-Key`. Raises ApiError and Declined."""
    traceparent = traceparent_of(request)

    def work(connection: Connection) -> StoredAnswer:
        row = orders.create(
            connection,
            f"batch_{new_hex(door.clock)}",
            principal.tenant,
            terms,
            unix_ms(door.clock),
            submitted_by=principal.credential,
            traceparent=traceparent,
        )
        return StoredAnswer(200, to_json(batch_object(row)))

    return await write_once(door, request, principal, body, work)
