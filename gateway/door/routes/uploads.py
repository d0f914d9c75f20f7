"""`/v1/uploads`: create, add parts, complete, cancel. Source: OpenAI's API reference, "Uploads"."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from gateway.access import Scope
from gateway.batches.assembly import Assembly
from gateway.batches.uploads import (
    PART_BYTES,
    PartRow,
    UploadRow,
    completion,
    part_object,
    upload_object,
    upload_terms,
)
from gateway.door.body import parse_json, read_body
from gateway.door.door import Door
from gateway.door.noted import note_objects
from gateway.door.receiving import Receiving, file_form

MOST_BODY_BYTES = 64 * 1024


def routes(door: Door) -> list[BaseRoute]:
    """Return the routes of uploads."""
    shelf = door.shelf
    assembly = Assembly(shelf)

    async def shown(row: UploadRow) -> JSONResponse:
        return JSONResponse(upload_object(row, await assembly.file_of(row), shelf.now_ms()))

    async def create(request: Request) -> JSONResponse:
        principal = await door.principal(request, Scope.SUBMIT)
        body = parse_json(await read_body(request, MOST_BODY_BYTES))
        row = await assembly.create(principal.tenant, upload_terms(body, shelf.settings.most_bytes))
        note_objects(request, [row.id])
        return await shown(row)

    async def add_part(request: Request) -> JSONResponse:
        principal = await door.principal(request, Scope.SUBMIT)
        tenant, identifier = principal.tenant, request.path_params["upload_id"]
        most = min(PART_BYTES, shelf.settings.most_bytes)
        form = file_form(request, "data", most)
        draft = await shelf.storage.run(assembly.begin_part, tenant, identifier)

        async def keep() -> PartRow:
            return await assembly.keep_part(identifier, draft)

        received = Receiving(shelf.storage, draft, form, most, shelf.settings.upload_seconds)
        row = await received.kept(request, keep, lambda: assembly.drop_part(draft))
        note_objects(request, [row.id], [draft.sha256])
        return JSONResponse(part_object(row))

    async def complete(request: Request) -> JSONResponse:
        principal = await door.principal(request, Scope.SUBMIT)
        asked = completion(parse_json(await read_body(request, MOST_BODY_BYTES)))
        identifier = request.path_params["upload_id"]
        row = await assembly.complete(principal.tenant, identifier, asked, principal.credential)
        file = await assembly.file_of(row)
        note_objects(request, [row.file_id], [] if file is None else [file.sha256])
        return JSONResponse(upload_object(row, file, shelf.now_ms()))

    async def cancel(request: Request) -> JSONResponse:
        principal = await door.principal(request, Scope.CANCEL)
        return await shown(await assembly.cancel(principal.tenant, request.path_params["upload_id"]))

    return [
        Route("/v1/uploads", create, methods=["POST"]),
        Route("/v1/uploads/{upload_id}/parts", add_part, methods=["POST"]),
        Route("/v1/uploads/{upload_id}/complete", complete, methods=["POST"]),
        Route("/v1/uploads/{upload_id}/cancel", cancel, methods=["POST"]),
    ]
