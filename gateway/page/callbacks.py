"""Callbacks whose last attempt failed, and the form that sends one again."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.routing import Route

from gateway.access import Scope
from gateway.access.allowed import may_call
from gateway.door.door import Door
from gateway.door.errors import ApiError
from gateway.door.noted import note_objects
from gateway.page.asked import identifier_of
from gateway.page.desk import Desk, Form, ShownPage
from gateway.page.rendering import link
from gateway.page.searches import KafkaSearches
from gateway.page.undelivered import MOST_LOOKED_AT, failed_callbacks
from gateway.page.visitors import Visitor
from gateway.webhooks.resending import NoSuchCallback, find_records, find_tried, resend

_RESENT = "The callback is on its way again."


def callback_routes(door: Door, desk: Desk, searches: KafkaSearches) -> list[Route]:
    """Return the routes of callbacks."""
    kafka = door.fleet.kafka

    async def failed(request: Request, visitor: Visitor) -> ShownPage:
        found = await door.store.read(lambda connection: failed_callbacks(connection, visitor.principal.tenant))
        said = _RESENT if request.query_params.get("done") == "resent" else ""
        return ShownPage("callbacks", {"found": found, "most": MOST_LOOKED_AT, "said": said})

    async def again(request: Request, visitor: Visitor, form: Form) -> str:
        identifier, tenant = identifier_of(form, "callback"), visitor.principal.tenant
        webhook_id, origin = form.get("webhook_id", ""), form.get("origin", "")
        note_objects(request, [identifier])
        try:
            tried = await door.store.read(
                lambda connection: find_tried(connection, tenant, identifier, webhook_id, origin)
            )
            if not may_call(await door.access.tenant(tenant), tried.origin):
                message = f"The tenant's callbacks may not go to {tried.origin} any more; ask the operator."
                raise ApiError(403, "callback_not_allowed", message)
            records = await searches.run(partial(find_records, kafka, tried, door.clock))
        except NoSuchCallback:
            raise ApiError(404, "callback_not_found", "Kafka has no such callback, or keeps it no longer.") from None
        await door.store.write(lambda connection: resend(connection, kafka, records, door.clock))
        return link("/callbacks", done="resent")

    return [
        desk.shows("/callbacks", Scope.READ, "listFailedCallbacks", failed),
        desk.acts("/callbacks/resend", Scope.REDRIVE, "resendCallback", again),
    ]
