"""The routes of the console page, with its pages of batches."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.access import Scope
from gateway.access.sessions import Sessions
from gateway.batches import orders
from gateway.batches.files import names_of
from gateway.batches.orders import BatchRow
from gateway.batches.paging import RowPage, page_query
from gateway.door.cancelling import cancel_batch
from gateway.door.door import Door
from gateway.door.noted import note_objects
from gateway.door.routes.batches import LISTED, MOST_LISTED
from gateway.door.routes.files import content_response
from gateway.page.asked import asked, identifier_of
from gateway.page.callbacks import callback_routes, newest_first, resent
from gateway.page.desk import Desk, Form, ShownPage, going_to, guarded
from gateway.page.endpoints import endpoint_routes
from gateway.page.fleet import fleet_routes
from gateway.page.jobs import job_routes
from gateway.page.letters import letter_routes
from gateway.page.overview import overview_routes
from gateway.page.rendering import CONSOLE, link, page
from gateway.page.search_box import search_routes
from gateway.page.searches import KafkaSearches
from gateway.page.sign_in import sign_in_routes
from gateway.page.static_files import static_routes
from gateway.page.visitors import Visitor, Visitors
from gateway.store.states import CANCELLABLE, ENDED
from gateway.view.trace import Attempt, attempts_of
from telemetry.clock import unix_ms

_STEPS: Final = (
    ("Created", "created_at"),
    ("In progress", "in_progress_at"),
    ("Finalizing", "finalizing_at"),
    ("Cancelling", "cancelling_at"),
    ("Completed", "completed_at"),
    ("Failed", "failed_at"),
    ("Expired", "expired_at"),
    ("Cancelled", "cancelled_at"),
)
MOST_ERRORS: Final = 20
"""The maximum number of errors of an input file that the page shows."""


def page_routes(door: Door) -> list[BaseRoute]:
    """Return all routes below `/console`."""
    sessions = Sessions(door.store, door.clock, door.settings.session_seconds)
    visitors = Visitors(door, sessions)
    desk, searches = Desk(visitors), KafkaSearches(door.searches)
    return [
        *static_routes(),
        *sign_in_routes(door, sessions, visitors),
        *overview_routes(door, desk),
        *_batch_routes(door, desk),
        *job_routes(door, desk),
        *callback_routes(door, desk, searches),
        *letter_routes(door, desk, searches),
        *endpoint_routes(door, desk),
        *search_routes(door, desk),
        *fleet_routes(door, desk),
        Route(f"{CONSOLE}/{{rest:path}}", guarded(_unknown), methods=["GET", "POST"]),
    ]


async def _unknown(request: Request) -> Response:
    """Answer for an address that no page has."""
    if request.url.path == f"{CONSOLE}/":
        return going_to(CONSOLE)
    return page("error", 404, code=404, message="The console has no such page.")


def files_of(row: BatchRow) -> dict[str, str | None]:
    """Return the ids of a batch's files by their names on the page; None for a file that does not exist."""
    return {"Input file": row.input_file_id, "Output file": row.output_file_id, "Error file": row.error_file_id}


def _batch_routes(door: Door, desk: Desk) -> list[Route]:
    """Return the routes of batches and their files."""

    async def several(request: Request, visitor: Visitor) -> ShownPage:
        wanted = page_query(asked(request).query_params, most=MOST_LISTED, default=LISTED, kind="batch")
        tenant = visitor.principal.tenant

        def read(connection: Connection) -> tuple[RowPage, dict[str, str]]:
            found = orders.page(connection, tenant, wanted)
            return found, names_of(connection, tenant, [row.input_file_id for row in found.rows])

        found, names = await door.store.read(read)
        values = {"rows": found.rows, "has_more": found.has_more, "after": wanted.after, "names": names}
        return ShownPage("batches", {**values, "now_ms": unix_ms(door.clock)})

    async def one(request: Request, visitor: Visitor) -> ShownPage:
        identifier = identifier_of(request.query_params, "batch")
        note_objects(request, [identifier])
        tenant = visitor.principal.tenant

        def read(connection: Connection) -> tuple[BatchRow, dict[str, str], list[Attempt]]:
            row = orders.find(connection, tenant, identifier)
            names = names_of(connection, tenant, [file for file in files_of(row).values() if file])
            return row, names, attempts_of(connection, tenant, identifier)

        row, names, attempts = await door.store.read(read)
        steps = [(name, at) for name, column in _STEPS if (at := getattr(row, column)) is not None]
        values = {"row": row, "steps": sorted(steps, key=lambda step: step[1]), "most_errors": MOST_ERRORS}
        states = {"is_over": row.status in ENDED, "can_be_cancelled": row.status in CANCELLABLE}
        files = {"files": files_of(row), "names": names, "now_ms": unix_ms(door.clock)}
        tried = {"attempts": newest_first(attempts), "said": resent(request)}
        return ShownPage("batch", {**values, **states, **files, **tried})

    async def file(request: Request, visitor: Visitor) -> Response:
        identifier = identifier_of(request.query_params, "file")
        note_objects(request, [identifier])
        row = await door.shelf.find(visitor.principal.tenant, identifier)
        return await content_response(door, row, request.headers.get("range"))

    async def cancel(request: Request, visitor: Visitor, form: Form) -> str:
        identifier = identifier_of(form, "batch")
        note_objects(request, [identifier])
        await cancel_batch(door, visitor.principal, identifier)
        return link("/batch", id=identifier)

    return [
        desk.shows("/batches", Scope.READ, "listBatches", several),
        desk.shows("/batch", Scope.READ, "getBatch", one),
        desk.shows("/file", Scope.READ, "getFileContent", file),
        desk.acts("/batch/cancel", Scope.CANCEL, "cancelBatch", cancel),
    ]
