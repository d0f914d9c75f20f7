"""`/v1/files`: upload, list, retrieve, content, delete; `/v1/uploads`: create, add parts, complete, cancel.

Source: OpenAI's API reference, "Files" and "Uploads".
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from urllib.parse import quote

from pydantic_core import to_json
from sqlalchemy import Connection
from starlette.responses import Response, StreamingResponse

from gateway.accept.idempotency import StoredAnswer
from gateway.batches import files
from gateway.batches.files import FileRow, file_object, file_terms
from gateway.batches.uploads import PART_BYTES, part_object
from gateway.door.accepting import idempotency_key, response_of, write_once
from gateway.door.door import Door
from gateway.door.endpoint import Answer, Call
from gateway.door.noted import note_objects
from gateway.door.receiving import Receiving, file_form
from gateway.errors import ApiError
from gateway.paging import list_body, page_query

MOST_LISTED = 10_000
_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{0,15})")


async def upload(call: Call) -> Answer:
    """Upload a file."""
    shelf = call.door.shelf
    idempotency_key(call.request)
    form = file_form(call.request, "file", shelf.settings.most_bytes)
    draft = await shelf.storage.run(shelf.begin, call.tenant, call.principal.credential)

    async def keep() -> StoredAnswer:
        terms = file_terms(form.filename, form.fields)
        await shelf.storage.run(draft.writer.commit)

        def work(connection: Connection) -> StoredAnswer:
            return StoredAnswer(200, to_json(file_object(shelf.store_row(connection, draft, terms))))

        # The form's boundary differs between repeats, so its parts are compared.
        said = f"{draft.sha256}\n{terms}".encode()
        return await write_once(call, said, work)

    stored = await Receiving(shelf, draft, form, shelf.settings.most_bytes).kept(call.request, keep)
    identifier = json.loads(stored.body)["id"]
    if identifier != draft.id:  # a repeat, whose file is there already
        await shelf.storage.run_anyway(shelf.drop, draft)
    note_objects(call.request, [identifier], [draft.sha256])
    return response_of(stored)


async def list_files(call: Call) -> Answer:
    """List files."""
    said = call.request.query_params
    query = page_query(said, most=MOST_LISTED, default=MOST_LISTED, kind="file")
    page = await call.read(files.page, query, said.get("purpose"), call.door.shelf.now_ms())
    return list_body([file_object(row) for row in page.rows], has_more=page.has_more)


async def retrieve(call: Call) -> Answer:
    """Read a file's description."""
    return file_object(await _found(call))


async def content(call: Call) -> Answer:
    """Download a file."""
    return await content_response(call.door, await _found(call), call.request.headers.get("range"))


async def delete(call: Call) -> Answer:
    """Delete a file."""
    shelf, identifier = call.door.shelf, call.in_path("file_id")
    await call.write(files.mark_deleted, identifier, shelf.now_ms())
    await shelf.storage.run_anyway(shelf.remove, [identifier])
    return {"id": identifier, "object": "file", "deleted": True}


async def _found(call: Call) -> FileRow:
    return await call.read(files.find, call.in_path("file_id"), call.door.shelf.now_ms())


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
    row = await call.door.uploads.create(call.tenant, await call.body())
    note_objects(call.request, [row.id])
    return (await call.door.uploads.shown(row))[0]


async def add_part(call: Call) -> Answer:
    """Upload a part.

    A part has 64 MiB at most; parts may arrive at the same time and in any order.
    """
    shelf, uploads = call.door.shelf, call.door.uploads
    most = min(PART_BYTES, shelf.settings.most_bytes)
    form = file_form(call.request, "data", most)
    draft = await shelf.storage.run(uploads.begin_part, call.tenant, call.in_path("upload_id"))
    row = await Receiving(shelf, draft, form, most).kept(call.request, partial(uploads.keep_part, draft))
    note_objects(call.request, [row.id], [draft.sha256])
    return part_object(row)


async def complete_upload(call: Call) -> Answer:
    """Join the parts to a file.

    A repeat with the same parts gets the same file.
    """
    uploads, asked = call.door.uploads, await call.body()
    row = await uploads.complete(call.tenant, call.in_path("upload_id"), asked, call.principal.credential)
    shown, file = await uploads.shown(row)
    note_objects(call.request, [row.file_id], [] if file is None else [file.sha256])
    return shown


async def cancel_upload(call: Call) -> Answer:
    """Cancel an upload."""
    row = await call.door.uploads.cancel(call.tenant, call.in_path("upload_id"))
    return (await call.door.uploads.shown(row))[0]
