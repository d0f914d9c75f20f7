"""The tenant's webhook endpoints."""

from __future__ import annotations

from starlette.requests import Request
from starlette.routing import Route

from gateway.access import Scope
from gateway.door import query
from gateway.door.door import Door
from gateway.page.asked import asked
from gateway.page.desk import Desk, ShownPage
from gateway.page.visitors import Visitor
from gateway.webhooks import endpoints


def endpoint_routes(door: Door, desk: Desk) -> list[Route]:
    """Return the route of webhook endpoints."""

    async def several(request: Request, visitor: Visitor) -> ShownPage:
        said = asked(request)
        query.only(said, ("after", "limit"))
        wanted, tenant = query.page(said), visitor.principal.tenant
        rows, more = await door.store.read(
            lambda connection: endpoints.page(connection, tenant, wanted.limit, wanted.after)
        )
        return ShownPage("endpoints", {"rows": rows, "has_more": more, "after": wanted.after})

    return [desk.shows("/endpoints", Scope.READ, "listWebhookEndpoints", several)]
