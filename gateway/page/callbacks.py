"""Callbacks by their last attempt, all attempts of a job or a batch, and the form that sends a callback again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Connection, select
from starlette.requests import Request
from starlette.routing import Route

from gateway.access import Scope
from gateway.access.allowed import may_call
from gateway.access.recent import Recent
from gateway.door import query
from gateway.door.door import Door
from gateway.errors import ApiError
from gateway.page.desk import Desk, ShownPage, Visit, answered, asked
from gateway.page.rendering import link, link_of
from gateway.store.tables import job_attempts
from gateway.view.trace import Attempt, attempt_of
from gateway.webhooks.resending import find_records, find_tried, resend
from telemetry.logs import origin_of

MOST_LOOKED_AT: Final = 2_000
"""The number of newest attempts that the page searches."""
MOST_SHOWN: Final = 100
TABS: Final = {"failed": "Failed", "delivered": "Delivered", "all": "All"}
"""The values of the page's parameter `show`, with their names. The first one is the default."""
_RESENT = "The callback is on its way again."
_NEWEST = (job_attempts.c.at.desc(), job_attempts.c.topic_offset.desc())
FRESH_SECONDS: Final = 2.0
MOST_KEPT: Final = 64
"""The maximum number of tenants whose callbacks are kept for the next request."""
NEWS_MS: Final = 600_000
"""For this time after an object's end or its last attempt, its page looks for further attempts."""


def resent(request: Request) -> str:
    """Return the text about a callback that was just sent again, for the page to which the form leads; else ""."""
    return _RESENT if request.query_params.get("done") == "resent" else ""


def may_have_news(attempts: Sequence[Attempt], ended_ms: int | None, now_ms: int) -> bool:
    """True if the page of an object looks for further attempts; `ended_ms` is the time of its end, if it has ended."""
    return ended_ms is None or now_ms - max([ended_ms, *(each.at_ms for each in attempts)]) < NEWS_MS


def newest_first(attempts: Sequence[Attempt]) -> list[tuple[Attempt, bool]]:
    """Return one object's attempts, the newest first, each with True if it is the last one of its callback."""
    seen: set[tuple[str, str | None]] = set()
    shown: list[tuple[Attempt, bool]] = []
    for attempt in reversed(attempts):
        callback = (attempt.webhook_id, attempt.origin)
        shown.append((attempt, callback not in seen))
        seen.add(callback)
    return shown


def callback_routes(desk: Desk) -> list[Route]:
    """Return the routes of callbacks."""
    door, kafka = desk.door, desk.door.fleet.kafka

    async def read(tenant: str) -> Mapping[str, ShownCallbacks]:
        return await door.store.read(lambda connection: last_attempts(connection, tenant))

    recent = Recent(read, FRESH_SECONDS, door.clock, MOST_KEPT)

    async def several(visit: Visit) -> ShownPage:
        said = asked(visit.request)
        query.only(said, ("show", "done"))
        show = query.one_of(said, "show", TABS) or next(iter(TABS))
        found = (await recent.get(visit.tenant))[show]
        values = {"found": found, "most": MOST_LOOKED_AT, "said": resent(visit.request), "show": show, "tabs": TABS}
        return ShownPage("callbacks", values)

    async def again(visit: Visit) -> str:
        identifier, tenant = visit.named("callback"), visit.tenant
        webhook_id, origin = visit.form.get("webhook_id", ""), visit.form.get("origin", "")
        tried = await visit.read(find_tried, identifier, webhook_id, origin)
        await require_may_call(door, tenant, tried.origin)
        records = await answered(door.searches.run(partial(find_records, kafka, tried, door.clock)))
        await door.store.write(lambda connection: resend(connection, kafka, records, door.clock))
        return link_of(identifier, done="resent") if "from_object" in visit.form else link("/callbacks", done="resent")

    return [
        desk.shows("/callbacks", Scope.READ, "listCallbacks", several, tab="Callbacks"),
        desk.acts("/callbacks/resend", Scope.REDRIVE, "resendCallback", again),
    ]


async def require_may_call(door: Door, tenant: str, url: str) -> None:
    """Refuse a callback to a URL that the tenant's settings forbid by now. Raises ApiError (403) and StoreAway."""
    if not may_call(await door.access.tenant(tenant), url):
        message = f"The tenant's callbacks may not go to {origin_of(url)} any more; ask the operator."
        raise ApiError(403, "callback_not_allowed", message)


@dataclass(frozen=True, slots=True)
class ShownCallback:
    """A callback with its last attempt. If it failed, delivery may still try the callback again."""

    job_id: str
    last: Attempt


@dataclass(frozen=True, slots=True)
class ShownCallbacks:
    """The callbacks of a tenant, the newest attempt first."""

    shown: Sequence[ShownCallback]
    found: int
    """The number of callbacks, including those beyond MOST_SHOWN."""
    is_whole: bool
    """False if there are older attempts, which the page did not search."""


def last_attempts(connection: Connection, tenant: str) -> dict[str, ShownCallbacks]:
    """Search the tenant's newest attempts, and return, for each tab, the callbacks whose last attempt belongs there."""
    newest = select(job_attempts).where(job_attempts.c.tenant == tenant)
    rows = connection.execute(newest.order_by(*_NEWEST).limit(MOST_LOOKED_AT)).all()
    seen: set[tuple[str, str, str | None]] = set()
    found: dict[str, list[ShownCallback]] = {tab: [] for tab in TABS}
    for row in rows:
        attempt = attempt_of(row)
        callback = (row.job_id, row.webhook_id, attempt.origin)
        if callback not in seen:
            seen.add(callback)
            for tab in ("all", "delivered" if attempt.error is None else "failed"):
                found[tab].append(ShownCallback(row.job_id, attempt))
    is_whole = len(rows) < MOST_LOOKED_AT
    return {tab: ShownCallbacks(some[:MOST_SHOWN], len(some), is_whole) for tab, some in found.items()}
