"""The routes of the console page."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.access.sessions import Sessions
from gateway.door.door import Door
from gateway.page.batches import batch_routes
from gateway.page.callbacks import callback_routes
from gateway.page.desk import Desk, going_to, guarded
from gateway.page.endpoints import endpoint_routes
from gateway.page.jobs import job_routes
from gateway.page.letters import letter_routes
from gateway.page.overview import overview_routes
from gateway.page.rendering import CONSOLE, page
from gateway.page.searches import KafkaSearches
from gateway.page.sign_in import sign_in_routes
from gateway.page.static_files import static_routes
from gateway.page.visitors import Visitors


def page_routes(door: Door) -> list[BaseRoute]:
    """Return all routes below `/console`."""
    sessions = Sessions(door.store, door.clock, door.settings.session_seconds)
    visitors = Visitors(door, sessions)
    desk, searches = Desk(visitors), KafkaSearches(door.searches)
    return [
        *static_routes(),
        *sign_in_routes(door, sessions, visitors),
        *overview_routes(door, desk),
        *batch_routes(door, desk),
        *job_routes(door, desk),
        *callback_routes(door, desk, searches),
        *letter_routes(door, desk, searches),
        *endpoint_routes(door, desk),
        Route(f"{CONSOLE}/{{rest:path}}", guarded(_unknown), methods=["GET", "POST"]),
    ]


async def _unknown(request: Request) -> Response:
    """Answer for an address that no page has."""
    if request.url.path == f"{CONSOLE}/":
        return going_to(CONSOLE)
    return page("error", 404, code=404, message="The console has no such page.")
