"""Uploads, whose files arrive in parts. Each part is a file on the shelf, and completing an upload joins its parts.

Each attempt to join writes a file of its own. The last step is compare-and-set on the upload's status, so one process
wins, and any other process removes its file. The parts are hidden in the change that ends their upload.
Source: OpenAI's API reference, "Uploads".
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Annotated, Any, Final
from weakref import WeakValueDictionary

from pydantic import AfterValidator, Field, StringConstraints
from sqlalchemy import Connection, Row, and_, func, select

from gateway.batches import files
from gateway.batches.files import Draft, ExpiresAfter, FileRow, FileTerms, Purpose, Shelf, file_object
from gateway.blobs.base import BlobMissing
from gateway.errors import ApiError, conflict
from gateway.paging import find_row
from gateway.store.tables import files as rows
from gateway.store.tables import uploads
from producers.identity import new_hex
from schemas.bounded import WireModel

PENDING: Final = "pending"
COMPLETED: Final = "completed"
CANCELLED: Final = "cancelled"
EXPIRED: Final = "expired"

LIFE_MS: Final = 3_600_000
"""An upload expires after this time, the same as OpenAI's."""
LATE_MS: Final = 600_000
"""Parts remain for this time after the expiry, for a request that began to complete the upload in time."""
KEPT_MS: Final = 24 * 3_600_000
"""The row remains for this time after the expiry, so that a repeated `complete` gets the same file."""
MOST_PARTS: Final = 1000
PART_BYTES: Final = 64 * 1024 * 1024
"""The maximum number of bytes of one part, the same as OpenAI's limit."""
_SWEPT_TOGETHER = 1000
_PIECES = 16
"""The number of pieces, 4 MiB in all, that a thread copies in one go. Then another request may use the thread."""

UploadRow = Row[Any]


def _distinct(part_ids: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(part_ids)) < len(part_ids):
        raise ValueError("has an id more than once")
    return part_ids


class UploadRequest(WireModel):
    """The body of a request to create an upload."""

    bytes: int = Field(ge=1)
    """The size of the whole file."""
    filename: str
    mime_type: str
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class UploadCompletion(WireModel):
    """The body of a request to complete an upload."""

    part_ids: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_distinct)]
    """The ids of all parts, in the order of the file."""
    md5: Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{32}$")] | None = None
    """The hexadecimal MD5 of the whole file."""

    @property
    def part_ids_sha256(self) -> str:
        """A hash of the ordered list of parts, by which a repeated request is recognised."""
        return hashlib.sha256("\n".join(self.part_ids).encode("utf-8", "surrogatepass")).hexdigest()


class Overtaken(Exception):  # noqa: N818 - it names what happened
    """Another process ended the upload first."""


class Uploads:
    """The uploads of all tenants. All methods but `begin_part` are for the event loop."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._joining: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(self, tenant: str, terms: UploadRequest) -> UploadRow:
        """Begin an upload. Raises ApiError (413), also for a tenant whose space has no room, and StoreAway."""
        largest, now_ms = self._shelf.settings.most_bytes, self._shelf.now_ms()
        if terms.bytes > largest:
            raise ApiError(413, "file_too_large", f"The file has more than {largest} bytes; split it.", "bytes")
        identifier = f"upload_{new_hex(self._shelf.clock)}"
        row = {
            "id": identifier,
            "tenant": tenant,
            "status": PENDING,
            "purpose": terms.purpose,
            "filename": files.clean_filename(terms.filename),
            "bytes": terms.bytes,
            "created_at": now_ms,
            "expires_at": now_ms + LIFE_MS,
            "file_expires_seconds": files.seconds_of(terms.expires_after),
        }

        def change(connection: Connection) -> UploadRow:
            self._shelf.require_room(connection, tenant, terms.bytes, "bytes")
            connection.execute(uploads.insert().values(**row))
            return find_row(connection, uploads, "upload", tenant, identifier)

        return await self._shelf.store.write(change)

    def begin_part(self, tenant: str, upload_id: str) -> Draft:
        """Begin a part. Blocks. Raises ApiError (400, 404, 409, 413), BlobsAway and StoreAway."""

        def require(connection: Connection) -> None:
            self._pending(connection, tenant, upload_id)
            of_upload = select(func.count()).select_from(rows).where(rows.c.upload_id == upload_id)
            if connection.execute(of_upload).scalar_one() >= MOST_PARTS:
                message = f"An upload has at most {MOST_PARTS} parts; send larger ones."
                raise ApiError(400, "too_many_parts", message, "data")

        return self._shelf.begin(tenant, None, upload_id, require)

    async def keep_part(self, draft: Draft) -> FileRow:
        """Finish a part: complete its blob, and then its row. Raises ApiError (408, 409, 413), BlobsAway, StoreAway."""
        await self._shelf.storage.run(draft.writer.commit)

        def change(connection: Connection) -> FileRow:
            self._pending(connection, draft.tenant, str(draft.upload_id))
            return self._shelf.store_row(connection, draft, FileTerms())

        return await self._shelf.store.write(change)

    async def complete(
        self, tenant: str, upload_id: str, asked: UploadCompletion, submitted_by: str | None
    ) -> UploadRow:
        """Join the parts to a file, and return the upload. A repeat gets the same upload with the same file.

        Raises ApiError (400, 404, 408, 409), BlobsAway, BlobMissing and StoreAway.
        """
        is_joined = partial(self._is_joined, tenant=tenant, upload_id=upload_id, asked=asked)
        async with self._joining.setdefault(upload_id, asyncio.Lock()):
            if not await self._shelf.store.read(is_joined):
                try:
                    await self._join(tenant, upload_id, asked, submitted_by)
                except (Overtaken, BlobMissing):
                    # Another process may have completed the upload and removed its parts. Then answer with that upload.
                    if not await self._shelf.store.read(is_joined):
                        raise
        return await self._shelf.store.read(
            lambda connection: find_row(connection, uploads, "upload", tenant, upload_id)
        )

    async def cancel(self, tenant: str, upload_id: str) -> UploadRow:
        """End an upload without a file. A cancelled upload stays cancelled. Raises ApiError (404, 409), StoreAway."""

        def change(connection: Connection) -> tuple[UploadRow, list[str]]:
            row = find_row(connection, uploads, "upload", tenant, upload_id)
            if row.status != CANCELLED:
                self._pending(connection, tenant, upload_id)
                connection.execute(uploads.update().where(uploads.c.id == upload_id).values(status=CANCELLED))
            ended = find_row(connection, uploads, "upload", tenant, upload_id)
            return ended, _hide_parts(connection, upload_id, self._shelf.now_ms())

        row, parts = await self._shelf.store.write(change)
        await self._shelf.storage.run_anyway(self._shelf.remove, parts)
        return row

    async def shown(self, row: UploadRow) -> tuple[dict[str, Any], FileRow | None]:
        """Return the JSON object of an upload, in OpenAI's form, and its file: None without one, or a deleted one."""
        now_ms = self._shelf.now_ms()

        def file_of(connection: Connection) -> FileRow | None:
            try:
                return files.find(connection, row.tenant, row.file_id or "", now_ms)
            except ApiError:
                return None

        file = await self._shelf.store.read(file_of)
        said = {
            "id": row.id,
            "object": "upload",
            "bytes": row.bytes,
            "created_at": row.created_at // 1000,
            "expires_at": row.expires_at // 1000,
            "filename": row.filename,
            "purpose": row.purpose,
            "status": _status(row, now_ms),
            "file": None if file is None else file_object(file),
        }
        return said, file

    def _pending(self, connection: Connection, tenant: str, upload_id: str) -> UploadRow:
        """Return the row of a pending upload. Raises ApiError (404, 409)."""
        row = find_row(connection, uploads, "upload", tenant, upload_id)
        if (status := _status(row, self._shelf.now_ms())) != PENDING:
            raise conflict("upload_not_pending", f"Upload {row.id} is `{status}`; create another one.", "upload_id")
        return row

    def _is_joined(self, connection: Connection, tenant: str, upload_id: str, asked: UploadCompletion) -> bool:
        """Return True if the upload is completed with these parts already, and False if they can be joined.

        Raises ApiError: 404, 409 for an upload that has ended otherwise, 400 for parts that are not the whole file.
        """
        row = find_row(connection, uploads, "upload", tenant, upload_id)
        if row.status == COMPLETED and row.part_ids_sha256 == asked.part_ids_sha256:
            return True
        self._pending(connection, tenant, upload_id)
        stored = select(rows.c.id, rows.c.bytes).where(rows.c.upload_id == upload_id, rows.c.stored_at.is_not(None))
        sizes = {part.id: part.bytes for part in connection.execute(stored)}
        missing = next((each for each in asked.part_ids if each not in sizes), None)
        if missing is not None:
            raise ApiError(400, "part_not_found", f"The upload has no part {missing[:80]!r}.", "part_ids")
        total = sum(sizes[each] for each in asked.part_ids)
        if total != row.bytes:
            message = f"The parts have {total} bytes, and the upload was created for {row.bytes}."
            raise ApiError(400, "bytes_mismatch", message, "part_ids")
        return False

    async def _join(self, tenant: str, upload_id: str, asked: UploadCompletion, submitted_by: str | None) -> None:
        """Write the file, end the upload with it, and remove the parts. Raises Overtaken."""
        draft = await self._shelf.storage.run(self._shelf.begin, tenant, submitted_by, bounded=False)
        dropped = True
        try:
            await self._copy(draft, asked)
            await self._shelf.storage.run(draft.writer.commit)
            # Even if the store's answer is lost, the upload may have the file, so only the sweep may remove the file.
            dropped = False
            parts = await self._shelf.store.write(
                partial(end_with, draft=draft, upload_id=upload_id, asked=asked, now_ms=self._shelf.now_ms())
            )
            if parts is None:
                dropped = True
                raise Overtaken
        finally:
            if dropped:
                await asyncio.shield(self._shelf.storage.run_anyway(self._shelf.drop, draft))
        await self._shelf.storage.run_anyway(self._shelf.remove, parts)

    async def _copy(self, draft: Draft, asked: UploadCompletion) -> None:
        """Append the parts to the draft. Raises ApiError (400) if the MD5 of the parts is another one than asked."""
        digest = hashlib.md5(usedforsecurity=False)

        def some(pieces: Iterator[bytes]) -> bool:
            before = draft.size
            for piece in islice(pieces, _PIECES):
                draft.write(piece)
                digest.update(piece)
            return draft.size > before

        for part in asked.part_ids:
            pieces = self._shelf.blobs.read(part)
            while await self._shelf.storage.run(some, pieces):
                pass
        if asked.md5 is not None and digest.hexdigest() != asked.md5.lower():
            raise ApiError(400, "checksum_mismatch", "The parts in this order have another MD5 than `md5`.", "md5")


def end_with(
    connection: Connection, draft: Draft, upload_id: str, asked: UploadCompletion, now_ms: int
) -> list[str] | None:
    """Make the joined file visible, and end its upload. Return the hidden parts; None if the upload has ended already.

    Raises ApiError (408) if the file's row was removed meanwhile.
    """
    pending = and_(uploads.c.id == upload_id, uploads.c.status == PENDING)
    ended = {"status": COMPLETED, "file_id": draft.id, "part_ids_sha256": asked.part_ids_sha256}
    if connection.execute(uploads.update().where(pending).values(**ended)).rowcount == 0:
        return None
    row = connection.execute(select(uploads).where(uploads.c.id == upload_id)).one()
    files.store(connection, draft, FileTerms(row.purpose, row.filename, row.file_expires_seconds), now_ms)
    return _hide_parts(connection, upload_id, now_ms)


def _hide_parts(connection: Connection, upload_id: str, now_ms: int) -> list[str]:
    """Hide the parts of an upload that ends, and return their ids. A part that is still written is left to its end."""
    of_upload = rows.c.upload_id == upload_id, rows.c.stored_at.is_not(None)
    files.hide(connection, of_upload, now_ms)
    return list(connection.execute(select(rows.c.id).where(*of_upload)).scalars())


def sweep(shelf: Shelf) -> int:
    """Remove expired and deleted files, parts of ended uploads, and leftovers of writes that were cut off. Blocks.

    Overdue uploads expire, and the rows of uploads that ended long ago are removed. Returns the number of removed
    files. Raises StoreAway.
    """
    now_ms = shelf.now_ms()
    abandoned_ms = now_ms - int(2000 * shelf.settings.upload_seconds)

    def change(connection: Connection) -> list[str]:
        overdue = and_(uploads.c.status == PENDING, uploads.c.expires_at < now_ms - LATE_MS)
        connection.execute(uploads.update().where(overdue).values(status=EXPIRED))
        ended = select(uploads.c.id).where(uploads.c.status != PENDING)
        files.hide(connection, [rows.c.upload_id.in_(ended), rows.c.stored_at.is_not(None)], now_ms)
        files.hide_overdue(connection, now_ms, abandoned_ms)
        with_parts = select(rows.c.upload_id).where(rows.c.upload_id.is_not(None))
        old = and_(uploads.c.expires_at < now_ms - KEPT_MS, uploads.c.id.not_in(with_parts))
        connection.execute(uploads.delete().where(old))
        hidden = select(rows.c.id).where(rows.c.deleted_at.is_not(None)).limit(_SWEPT_TOGETHER)
        return list(connection.execute(hidden).scalars())

    found = shelf.store.write_now(change)
    for identifier in found:  # one by one: a content that cannot be removed must not keep the others
        shelf.remove([identifier])
    return len(found)


def part_object(row: FileRow) -> dict[str, Any]:
    """Return the JSON object of a part, in OpenAI's form."""
    said = {"id": row.id, "object": "upload.part", "created_at": row.created_at // 1000}
    return {**said, "upload_id": row.upload_id}


def _status(row: UploadRow, now_ms: int) -> str:
    return EXPIRED if row.status == PENDING and row.expires_at <= now_ms else str(row.status)
