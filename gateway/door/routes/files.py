"""`/v1/files`: upload, list, retrieve, content, delete; `/v1/uploads`: create, add parts, complete, cancel.

Source: OpenAI's API reference, "Files" and "Uploads".
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

from pydantic_core import to_json
from sqlalchemy import Connection
from starlette.responses import Response, StreamingResponse

from gateway.accept.idempotency import StoredAnswer
from gateway.batches.files import FileRow, file_object, file_terms
from gateway.batches.paging import list_body, page_query
from gateway.batches.uploads import PART_BYTES, PartRow, UploadRow, part_object, upload_object
from gateway.door.accepting import idempotency_key, response_of, write_once
from gateway.door.door import Door
from gateway.door.endpoint import Answer, Call
from gateway.door.noted import note_objects
from gateway.door.receiving import Receiving, file_form
from gateway.errors import ApiError

MOST_LISTED = 10_000
_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{0,15})")


async def upload(call: Call) -> Answer:
    """Upload a file."""
    shelf = call.door.shelf
    idempotency_key(call.request)
    most = shelf.settings.most_bytes
    form = file_form(call.request, "file", most)
    draft = await shelf.storage.run(shelf.begin, call.tenant, call.principal.credential)

    async def keep() -> StoredAnswer:
        terms = file_terms(form.filename, form.fields)
        await shelf.storage.run(draft.writer.commit)

        def work(connection: Connection) -> StoredAnswer:
            return StoredAnswer(200, to_json(file_object(shelf.store_row(connection, draft, terms))))

        # The form's boundary differs between repeats, so its parts are compared.
        said = f"{draft.sha256}\n{terms}".encode()
        return await write_once(call, said, work)

    received = Receiving(shelf.storage, draft, form, most, shelf.settings.upload_seconds)
    stored = await received.kept(call.request, keep, lambda: shelf.drop(draft))
    identifier = json.loads(stored.body)["id"]
    if identifier != draft.id:  # a repeat, whose file is there already
        await shelf.storage.run_anyway(shelf.drop, draft)
    note_objects(call.request, [identifier], [draft.sha256])
    return response_of(stored)


async def list_files(call: Call) -> Answer:
    """List files."""
    said = call.request.query_params
    query = page_query(said, most=MOST_LISTED, default=MOST_LISTED, kind="file")
    page = await call.door.shelf.page(call.tenant, query, said.get("purpose"))
    return list_body([file_object(row) for row in page.rows], has_more=page.has_more)


async def retrieve(call: Call) -> Answer:
    """Read a file's description."""
    return file_object(await _found(call))


async def content(call: Call) -> Answer:
    """Download a file."""
    return await content_response(call.door, await _found(call), call.request.headers.get("range"))


async def delete(call: Call) -> Answer:
    """Delete a file."""
    identifier = call.in_path("file_id")
    await call.door.shelf.delete(call.tenant, identifier)
    return {"id": identifier, "object": "file", "deleted": True}


async def _found(call: Call) -> FileRow:
    return await call.door.shelf.find(call.tenant, call.in_path("file_id"))


async def content_response(door: Door, row: FileRow, wanted: str | None) -> Response:
    """Return a file's bytes, or the range that the request asks for (RFC 9110, section 14)."""
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(row.filename, safe='')}",
        "x-content-type-options": "nosniff",
        "accept-ranges": "bytes",
        "etag": f'"{row.sha256}"',
    }
    start, end, status = 0, row.bytes, 200
    if wanted is not None and (asked := _RANGE.fullmatch(wanted)):
        start, end = int(asked[1]), min(int(asked[2] or row.bytes) + 1, row.bytes)
        if start >= row.bytes or end <= start:
            message = f"The file has {row.bytes} bytes, and the range is not within it."
            raise ApiError(416, "range_not_satisfiable", message, headers={"content-range": f"bytes */{row.bytes}"})
        status, headers["content-range"] = 206, f"bytes {start}-{end - 1}/{row.bytes}"
    headers["content-length"] = str(end - start)
    pieces: Iterator[bytes] = door.shelf.blobs.read(row.id, start, end - start)
    # The first piece is read before the answer begins, so that missing content still gets its own status.
    first = await door.shelf.storage.run(next, pieces, b"")
    return StreamingResponse(_rest(door, first, pieces), status, headers, media_type="application/octet-stream")


async def _rest(door: Door, first: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while first:
        yield first
        first = await door.shelf.storage.run_anyway(next, pieces, b"")


async def create_upload(call: Call) -> Answer:
    """Begin a file that arrives in parts.

    It expires after an hour.
    """
    row = await call.door.assembly.create(call.tenant, await call.body())
    note_objects(call.request, [row.id])
    return await _shown_upload(call, row)


async def add_part(call: Call) -> Answer:
    """Upload a part.

    A part has 64 MiB at most; parts may arrive at the same time and in any order.
    """
    shelf, assembly, identifier = call.door.shelf, call.door.assembly, call.in_path("upload_id")
    most = min(PART_BYTES, shelf.settings.most_bytes)
    form = file_form(call.request, "data", most)
    draft = await shelf.storage.run(assembly.begin_part, call.tenant, identifier)

    async def keep() -> PartRow:
        return await assembly.keep_part(identifier, draft)

    received = Receiving(shelf.storage, draft, form, most, shelf.settings.upload_seconds)
    row = await received.kept(call.request, keep, lambda: assembly.drop_part(draft))
    note_objects(call.request, [row.id], [draft.sha256])
    return part_object(row)


async def complete_upload(call: Call) -> Answer:
    """Join the parts to a file.

    A repeat with the same parts gets the same file.
    """
    assembly = call.door.assembly
    asked, credential = await call.body(), call.principal.credential
    row = await assembly.complete(call.tenant, call.in_path("upload_id"), asked, credential)
    file = await assembly.file_of(row)
    note_objects(call.request, [row.file_id], [] if file is None else [file.sha256])
    return upload_object(row, file, call.door.shelf.now_ms())


async def cancel_upload(call: Call) -> Answer:
    """Cancel an upload."""
    return await _shown_upload(call, await call.door.assembly.cancel(call.tenant, call.in_path("upload_id")))


async def _shown_upload(call: Call, row: UploadRow) -> Answer:
    return upload_object(row, await call.door.assembly.file_of(row), call.door.shelf.now_ms())
