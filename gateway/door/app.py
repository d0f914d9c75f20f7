"""The ASGI application: routes, errors in OpenAI's shape, and a request id in every answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from gateway.door.body import BodyBudget
from gateway.door.door import Door
from gateway.door.handlers import add_handlers
from gateway.door.observed import Observed
from gateway.door.routes import (
    admin,
    batches,
    completions,
    docs,
    events,
    files,
    jobs,
    models,
    responses,
    uploads,
    webhook_endpoints,
)
from gateway.door.traced import Traced
from telemetry.traces import collecting

ROUTES = (
    jobs.routes,
    responses.routes,
    completions.routes,
    batches.routes,
    files.routes,
    uploads.routes,
    events.routes,
    models.routes,
    webhook_endpoints.routes,
    admin.routes,
    docs.routes,
)
"""The routes of each file in `routes/`, the most frequent first, because a request is compared with one route after
another.
"""

MakeRoutes = Callable[[Door], Sequence[BaseRoute]]


def create_app(door: Door, beside: Iterable[MakeRoutes] = ()) -> ASGIApp:
    """Return the application: the API, and the routes of the packages above the door.

    The caller runs the application on a server.
    """
    app = Starlette(routes=[route for make in (*ROUTES, *beside) for route in make(door)])
    app.router.redirect_slashes = False
    add_handlers(app)
    observed = Observed(app, door.metrics, door.clock, door.audit, BodyBudget(door.settings.bodies_bytes))
    return Traced(observed) if collecting() else observed
