"""The ASGI application: routes, errors in OpenAI's shape, and a request id in every answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gateway.door.api import API
from gateway.door.body import BodyBudget
from gateway.door.door import Door
from gateway.door.handlers import add_handlers
from gateway.door.observed import Observed, Traced
from gateway.door.openapi import document_routes
from telemetry.traces import collecting

MakeRoutes = Callable[[Door], Sequence[BaseRoute]]


def routes(door: Door) -> list[Route]:
    """Return the routes of the API and of its description."""
    return [*(endpoint.route(door) for endpoint in API), *document_routes(door)]


def create_app(door: Door, beside: Iterable[MakeRoutes] = ()) -> ASGIApp:
    """Return the application: the API, and the routes of the packages above the door.

    The caller runs the application on a server.
    """
    app = Starlette(routes=[*routes(door), *(route for make in beside for route in make(door))])
    app.router.redirect_slashes = False
    add_handlers(app)
    observed = Observed(app, door.metrics, door.clock, door.audit, BodyBudget(door.settings.bodies_bytes))
    return Traced(observed) if collecting() else observed
