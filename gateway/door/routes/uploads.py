"""`/v1/uploads`: create, add parts, complete, cancel. Source: OpenAI's API reference, "Uploads"."""

from __future__ import annotations

from starlette.responses import JSONResponse

from gateway.batches.uploads import (
    PART_BYTES,
    PartRow,
    UploadRow,
    completion,
    part_object,
    upload_object,
    upload_terms,
)
from gateway.door.endpoint import Call
from gateway.door.noted import note_objects
from gateway.door.receiving import Receiving, file_form


async def create(call: Call) -> JSONResponse:
    """Begin an upload."""
    terms = upload_terms(await call.body(), call.door.shelf.settings.most_bytes)
    row = await call.door.assembly.create(call.tenant, terms)
    note_objects(call.request, [row.id])
    return await _shown(call, row)


async def add_part(call: Call) -> JSONResponse:
    """Receive a part."""
    shelf, assembly, identifier = call.door.shelf, call.door.assembly, call.in_path("upload_id")
    most = min(PART_BYTES, shelf.settings.most_bytes)
    form = file_form(call.request, "data", most)
    draft = await shelf.storage.run(assembly.begin_part, call.tenant, identifier)

    async def keep() -> PartRow:
        return await assembly.keep_part(identifier, draft)

    received = Receiving(shelf.storage, draft, form, most, shelf.settings.upload_seconds)
    row = await received.kept(call.request, keep, lambda: assembly.drop_part(draft))
    note_objects(call.request, [row.id], [draft.sha256])
    return JSONResponse(part_object(row))


async def complete(call: Call) -> JSONResponse:
    """Join the parts to a file."""
    assembly, asked = call.door.assembly, completion(await call.body())
    row = await assembly.complete(call.tenant, call.in_path("upload_id"), asked, call.principal.credential)
    file = await assembly.file_of(row)
    note_objects(call.request, [row.file_id], [] if file is None else [file.sha256])
    return JSONResponse(upload_object(row, file, call.door.shelf.now_ms()))


async def cancel(call: Call) -> JSONResponse:
    """Cancel an upload."""
    return await _shown(call, await call.door.assembly.cancel(call.tenant, call.in_path("upload_id")))


async def _shown(call: Call, row: UploadRow) -> JSONResponse:
    return JSONResponse(upload_object(row, await call.door.assembly.file_of(row), call.door.shelf.now_ms()))
