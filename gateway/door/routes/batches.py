"""`/v1/batches`: create, list, retrieve, cancel. Source: OpenAI's API reference, "Batch"."""

from __future__ import annotations

import json

from pydantic_core import to_json
from sqlalchemy import Connection

from gateway.accept.idempotency import StoredAnswer
from gateway.batches import orders
from gateway.batches.orders import BatchRequest, batch_object
from gateway.door.accepting import answered, write_once
from gateway.door.body import parse_json
from gateway.door.endpoint import Answer, Call
from gateway.door.noted import note_objects
from gateway.door.submitted import traceparent_of
from gateway.errors import validated
from gateway.paging import list_body, page_query
from producers.identity import new_hex
from telemetry.clock import unix_ms

MOST_LISTED, LISTED = 100, 20


async def create(call: Call) -> Answer:
    """Create a batch from an uploaded file."""
    door, content = call.door, await call.content()
    terms, traceparent = validated(BatchRequest, parse_json(content)), traceparent_of(call.request)

    def work(connection: Connection) -> StoredAnswer:
        row = orders.create(
            connection,
            f"batch_{new_hex(door.clock)}",
            call.tenant,
            terms,
            unix_ms(door.clock),
            submitted_by=call.principal.credential,
            traceparent=traceparent,
        )
        return StoredAnswer(200, to_json(batch_object(row)))

    made = await write_once(call, content, work)
    door.batches_changed()
    identifier = json.loads(made.body)["id"]
    note_objects(call.request, [identifier])
    return await answered(call, content, made, identifier)


async def list_batches(call: Call) -> Answer:
    """List batches."""
    query = page_query(call.request.query_params, most=MOST_LISTED, default=LISTED, kind="batch")
    page = await call.read(orders.page, query)
    return list_body([batch_object(row) for row in page.rows], has_more=page.has_more)


async def retrieve(call: Call) -> Answer:
    """Read a batch."""
    return batch_object(await call.read(orders.find, call.in_path("batch_id")))


async def cancel(call: Call) -> Answer:
    """Cancel a batch."""
    now_ms, topics = unix_ms(call.door.clock), call.door.fleet.kafka.topics
    row = await call.write(orders.cancel, call.in_path("batch_id"), now_ms, topics)
    call.door.batches_changed()
    return batch_object(row)
