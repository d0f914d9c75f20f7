"""The first page: waiting work, throughput, outcomes, unfinished batches."""

from __future__ import annotations

from starlette.requests import Request
from starlette.routing import Route

from gateway.access import Scope
from gateway.access.recent import Recent
from gateway.door.door import Door
from gateway.page.desk import Desk, ShownPage
from gateway.page.figures import MINUTES, TenantFigures, read_figures
from gateway.page.visitors import Visitor
from telemetry.clock import unix_ms

FRESH_SECONDS = 1.5
"""Figures up to this age are shown again, so that many open pages of a tenant cause one query of the store."""


def overview_routes(door: Door, desk: Desk) -> list[Route]:
    """Return the route of the first page."""

    async def read(tenant: str) -> TenantFigures:
        return await door.store.read(lambda connection: read_figures(connection, tenant, unix_ms(door.clock)))

    recent = Recent(read, FRESH_SECONDS, door.clock)

    async def show(_request: Request, visitor: Visitor) -> ShownPage:
        figures = await recent.get(visitor.principal.tenant)
        return ShownPage("overview", {"figures": figures, "minutes": MINUTES, "now_ms": unix_ms(door.clock)})

    return [desk.shows("", Scope.READ, "readOverview", show)]
