"""Callbacks whose last attempt failed, and the form that sends one again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Connection, select
from starlette.requests import Request
from starlette.routing import Route

from gateway.access import Scope
from gateway.access.allowed import may_call
from gateway.door.door import Door
from gateway.door.noted import note_objects
from gateway.errors import ApiError
from gateway.page.asked import identifier_of
from gateway.page.desk import Desk, Form, ShownPage
from gateway.page.rendering import link
from gateway.page.searches import KafkaSearches
from gateway.page.visitors import Visitor
from gateway.store.tables import job_attempts
from gateway.view.trace import Attempt, attempt_of
from gateway.webhooks.resending import NoSuchCallback, find_records, find_tried, resend
from telemetry.logs import origin_of

MOST_LOOKED_AT: Final = 2_000
"""The number of newest attempts that the page searches."""
MOST_SHOWN: Final = 100
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
            await require_may_call(door, tenant, tried.origin)
            records = await searches.run(partial(find_records, kafka, tried, door.clock))
        except NoSuchCallback:
            raise ApiError(404, "callback_not_found", "Kafka has no such callback, or keeps it no longer.") from None
        await door.store.write(lambda connection: resend(connection, kafka, records, door.clock))
        return link("/callbacks", done="resent")

    return [
        desk.shows("/callbacks", Scope.READ, "listFailedCallbacks", failed),
        desk.acts("/callbacks/resend", Scope.REDRIVE, "resendCallback", again),
    ]


async def require_may_call(door: Door, tenant: str, url: str) -> None:
    """Refuse a callback to a URL that the tenant's settings forbid by now. Raises ApiError (403) and StoreAway."""
    if not may_call(await door.access.tenant(tenant), url):
        message = f"The tenant's callbacks may not go to {origin_of(url)} any more; ask the operator."
        raise ApiError(403, "callback_not_allowed", message)


@dataclass(frozen=True, slots=True)
class FailedCallback:
    """A callback whose last attempt failed. Delivery may still try the callback again."""

    job_id: str
    last: Attempt


@dataclass(frozen=True, slots=True)
class FailedCallbacks:
    """The failed callbacks of a tenant, the newest attempt first."""

    shown: Sequence[FailedCallback]
    found: int
    """The number of failed callbacks, including those beyond MOST_SHOWN."""
    is_whole: bool
    """False if there are older attempts, which the page did not search."""


def failed_callbacks(connection: Connection, tenant: str) -> FailedCallbacks:
    """Search the tenant's newest attempts, and return the callbacks whose last attempt failed."""
    newest = select(job_attempts).where(job_attempts.c.tenant == tenant)
    order = (job_attempts.c.at.desc(), job_attempts.c.topic_offset.desc())
    rows = connection.execute(newest.order_by(*order).limit(MOST_LOOKED_AT)).all()
    seen: set[tuple[str, str, str | None]] = set()
    failed: list[FailedCallback] = []
    for row in rows:
        attempt = attempt_of(row)
        callback = (row.job_id, row.webhook_id, attempt.origin)
        if callback not in seen:
            seen.add(callback)
            if attempt.error is not None:
                failed.append(FailedCallback(row.job_id, attempt))
    return FailedCallbacks(failed[:MOST_SHOWN], len(failed), len(rows) < MOST_LOOKED_AT)
