"""Uploads, whose files arrive in parts: their rows, and the contents of the parts.

Each part is a blob, and completing an upload joins its parts to a file. The order of writes leaves no blob without a
row. Each attempt to join writes a file of its own. The last step is compare-and-set on the upload's status, so one
process wins, and any other process removes its file. Every function of a connection runs in a change or a query; times
are Unix milliseconds. Source: OpenAI's API reference, "Uploads".
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Any, Final
from weakref import WeakValueDictionary

from pydantic import AfterValidator, Field, StringConstraints
from sqlalchemy import Connection, Row, and_, func, or_, select

from gateway.batches import files
from gateway.batches.files import ExpiresAfter, FileRow, FileTerms, Purpose, file_object
from gateway.batches.shelf import Draft, Shelf
from gateway.blobs.base import BlobError, BlobMissing, BlobsAway
from gateway.errors import ApiError, conflict, not_found
from gateway.store.store import StoreAway
from gateway.store.tables import upload_parts, uploads
from producers.identity import new_hex
from schemas.bounded import WireModel
from telemetry.logs import get_logger

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

UploadRow = Row[Any]
PartRow = Row[Any]


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


def create(
    connection: Connection, identifier: str, tenant: str, terms: UploadRequest, now_ms: int, tenant_bytes: int
) -> UploadRow:
    """Write the row of a new upload. Raises ApiError (413) for a tenant whose space has no room for the file."""
    files.require_room(connection, tenant, terms.bytes, tenant_bytes, "bytes")
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
    connection.execute(uploads.insert().values(**row))
    return find(connection, tenant, identifier)


def find(connection: Connection, tenant: str, identifier: str) -> UploadRow:
    """Return the row of a tenant's upload. Raises ApiError (404)."""
    this = and_(uploads.c.id == identifier, uploads.c.tenant == tenant)
    row = connection.execute(select(uploads).where(this)).one_or_none()
    if row is None:
        raise not_found("upload", identifier)
    return row


def begin_part(
    connection: Connection, identifier: str, tenant: str, upload_id: str, now_ms: int, tenant_bytes: int
) -> None:
    """Write the row of a part whose first byte is still to come. Raises ApiError (404, 409, 413; 400 for too many)."""
    _require_pending(find(connection, tenant, upload_id), now_ms)
    files.require_room(connection, tenant, 1, tenant_bytes, "data")
    of_upload = select(func.count()).select_from(upload_parts).where(upload_parts.c.upload_id == upload_id)
    if connection.execute(of_upload).scalar_one() >= MOST_PARTS:
        raise ApiError(400, "too_many_parts", f"An upload has at most {MOST_PARTS} parts; send larger ones.", "data")
    row = {"id": identifier, "upload_id": upload_id, "bytes": 0, "created_at": now_ms}
    connection.execute(upload_parts.insert().values(**row))


def store_part(connection: Connection, identifier: str, tenant: str, upload_id: str, size: int, now_ms: int) -> PartRow:
    """Make a part usable. Raises ApiError (409) if the upload has ended meanwhile."""
    _require_pending(find(connection, tenant, upload_id), now_ms)
    this = upload_parts.c.id == identifier
    connection.execute(upload_parts.update().where(this).values(bytes=size, stored_at=now_ms))
    return connection.execute(select(upload_parts).where(this)).one()


def parts_to_join(
    connection: Connection, tenant: str, upload_id: str, asked: UploadCompletion, now_ms: int
) -> Sequence[str] | None:
    """Return the ids of the parts to join; None if the upload is completed with the same parts already.

    Raises ApiError: 404, 409 for an upload that has ended otherwise, 400 for parts that are not the whole file.
    """
    row = find(connection, tenant, upload_id)
    if row.status == COMPLETED and row.part_ids_sha256 == asked.part_ids_sha256:
        return None
    _require_pending(row, now_ms)
    stored = select(upload_parts.c.id, upload_parts.c.bytes).where(
        upload_parts.c.upload_id == upload_id, upload_parts.c.stored_at.is_not(None)
    )
    sizes = {part.id: part.bytes for part in connection.execute(stored)}
    missing = next((each for each in asked.part_ids if each not in sizes), None)
    if missing is not None:
        raise ApiError(400, "part_not_found", f"The upload has no part {missing[:80]!r}.", "part_ids")
    total = sum(sizes[each] for each in asked.part_ids)
    if total != row.bytes:
        message = f"The parts have {total} bytes, and the upload was created for {row.bytes}."
        raise ApiError(400, "bytes_mismatch", message, "part_ids")
    return asked.part_ids


def complete(
    connection: Connection, tenant: str, upload_id: str, asked: UploadCompletion, file_id: str, sha256: str, now_ms: int
) -> bool:
    """Make the joined file visible and end its upload. False if another request ended the upload first.

    Raises ApiError (408) if the file's row was removed meanwhile.
    """
    pending = and_(uploads.c.id == upload_id, uploads.c.status == PENDING)
    ended = {"status": COMPLETED, "file_id": file_id, "part_ids_sha256": asked.part_ids_sha256}
    if connection.execute(uploads.update().where(pending).values(**ended)).rowcount == 0:
        return False
    row = find(connection, tenant, upload_id)
    terms = FileTerms(row.purpose, row.filename, row.file_expires_seconds)
    files.store(connection, file_id, terms, row.bytes, sha256, now_ms)
    return True


def cancel(connection: Connection, tenant: str, upload_id: str, now_ms: int) -> UploadRow:
    """End a pending upload. A cancelled upload stays cancelled. Raises ApiError (404, 409)."""
    row = find(connection, tenant, upload_id)
    if row.status != CANCELLED:
        _require_pending(row, now_ms)
        connection.execute(uploads.update().where(uploads.c.id == upload_id).values(status=CANCELLED))
    return find(connection, tenant, upload_id)


def file_of(connection: Connection, row: UploadRow, now_ms: int) -> FileRow | None:
    """Return the row of a completed upload's file; None if there is none, or the file is deleted."""
    if row.file_id is None:
        return None
    try:
        return files.find(connection, row.tenant, row.file_id, now_ms)
    except ApiError:
        return None


def useless_parts(connection: Connection, abandoned_ms: int, upload_id: str | None) -> list[str]:
    """Return the ids of parts whose blobs can be removed: those of one ended upload, or of all ended uploads.

    A part that was begun after `abandoned_ms` and is not stored is left alone: its request may still write the blob.
    """
    written = or_(upload_parts.c.stored_at.is_not(None), upload_parts.c.created_at < abandoned_ms)
    statement = (
        select(upload_parts.c.id)
        .join(uploads, uploads.c.id == upload_parts.c.upload_id)
        .where(uploads.c.status != PENDING, written)
        .limit(_SWEPT_TOGETHER)
    )
    if upload_id is not None:
        statement = statement.where(uploads.c.id == upload_id)
    return list(connection.execute(statement).scalars())


def end_overdue(connection: Connection, now_ms: int) -> None:
    """Expire overdue uploads, and remove the rows of uploads that ended long ago and have no parts."""
    overdue = and_(uploads.c.status == PENDING, uploads.c.expires_at < now_ms - LATE_MS)
    connection.execute(uploads.update().where(overdue).values(status=EXPIRED))
    with_parts = select(upload_parts.c.upload_id)
    old = and_(uploads.c.expires_at < now_ms - KEPT_MS, uploads.c.id.not_in(with_parts))
    connection.execute(uploads.delete().where(old))


def forget_parts(connection: Connection, identifiers: Sequence[str]) -> None:
    """Remove rows whose blobs are removed."""
    connection.execute(upload_parts.delete().where(upload_parts.c.id.in_(identifiers)))


def upload_object(row: UploadRow, file: FileRow | None, now_ms: int) -> dict[str, Any]:
    """Return the JSON object of an upload, in OpenAI's form."""
    return {
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


def part_object(row: PartRow) -> dict[str, Any]:
    """Return the JSON object of a part, in OpenAI's form."""
    said = {"id": row.id, "object": "upload.part", "created_at": row.created_at // 1000}
    return {**said, "upload_id": row.upload_id}


def _status(row: UploadRow, now_ms: int) -> str:
    return EXPIRED if row.status == PENDING and row.expires_at <= now_ms else str(row.status)


def _require_pending(row: UploadRow, now_ms: int) -> None:
    if (status := _status(row, now_ms)) != PENDING:
        raise conflict("upload_not_pending", f"Upload {row.id} is `{status}`; create another one.", "upload_id")


_PIECES = 16
"""The number of pieces, 4 MiB in all, that a thread copies in one go. Then another request may use the thread."""

log = get_logger()


class Overtaken(Exception):  # noqa: N818 - it names what happened
    """Another process ended the upload first."""


class Assembly:
    """The uploads of all tenants. Methods without `async` block: call them in a thread."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._joining: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(self, tenant: str, terms: UploadRequest) -> UploadRow:
        """Begin an upload. Raises ApiError (413) and StoreAway."""
        largest = self._shelf.settings.most_bytes
        if terms.bytes > largest:
            raise ApiError(413, "file_too_large", f"The file has more than {largest} bytes; split it.", "bytes")
        identifier, now_ms = f"upload_{new_hex(self._shelf.clock)}", self._shelf.now_ms()
        most = self._shelf.settings.tenant_bytes
        return await self._shelf.store.write(
            lambda connection: create(connection, identifier, tenant, terms, now_ms, most)
        )

    def begin_part(self, tenant: str, upload_id: str) -> Draft:
        """Begin a part. Raises ApiError (400, 404, 409, 413), BlobsAway and StoreAway."""
        identifier, now_ms = f"part_{new_hex(self._shelf.clock)}", self._shelf.now_ms()
        most = self._shelf.settings.tenant_bytes
        self._shelf.store.write_now(
            lambda connection: begin_part(connection, identifier, tenant, upload_id, now_ms, most)
        )
        try:
            return Draft(identifier, self._shelf.blobs.create(identifier), tenant)
        except BlobsAway:
            self._forget([identifier])
            raise

    async def keep_part(self, upload_id: str, draft: Draft) -> PartRow:
        """Finish a part: complete its blob, and then its row.

        Raises ApiError (404, 409, 413), BlobsAway and StoreAway.
        """
        await self._shelf.storage.run(draft.writer.commit)
        now_ms, most = self._shelf.now_ms(), self._shelf.settings.tenant_bytes

        def store(connection: Connection) -> PartRow:
            # Check the room again, because several concurrent parts may have begun while there was room for only one.
            files.require_room(connection, draft.tenant, draft.size, most, "data")
            return store_part(connection, draft.id, draft.tenant, upload_id, draft.size, now_ms)

        return await self._shelf.store.write(store)

    def drop_part(self, draft: Draft) -> None:
        """Remove an unfinished part, or leave it to the sweep if the storage or the store is away."""
        draft.writer.abort()
        self._remove([draft.id])

    async def complete(
        self, tenant: str, upload_id: str, asked: UploadCompletion, submitted_by: str | None
    ) -> UploadRow:
        """Join the parts to a file, and return the upload. A repeat gets the same upload with the same file.

        Raises ApiError (400, 404, 408, 409), BlobsAway, BlobMissing and StoreAway.
        """
        lock = self._joining.setdefault(upload_id, asyncio.Lock())
        async with lock:
            parts = await self._parts_to_join(tenant, upload_id, asked)
            if parts is not None:
                try:
                    await self._join(tenant, upload_id, asked, parts, submitted_by)
                except (Overtaken, BlobMissing):
                    # Another process may have completed the upload and removed its parts. Then answer with that upload.
                    if await self._parts_to_join(tenant, upload_id, asked) is not None:
                        raise
        await self._shelf.storage.run_anyway(self.remove_parts, upload_id)
        return await self._shelf.store.read(lambda connection: find(connection, tenant, upload_id))

    async def cancel(self, tenant: str, upload_id: str) -> UploadRow:
        """End an upload without a file. Raises ApiError (404, 409) and StoreAway."""
        now_ms = self._shelf.now_ms()
        row = await self._shelf.store.write(lambda connection: cancel(connection, tenant, upload_id, now_ms))
        await self._shelf.storage.run_anyway(self.remove_parts, upload_id)
        return row

    async def file_of(self, row: UploadRow) -> FileRow | None:
        """Return the file of a completed upload; None if there is none."""
        now_ms = self._shelf.now_ms()
        return await self._shelf.store.read(lambda connection: file_of(connection, row, now_ms))

    def sweep(self) -> int:
        """Expire overdue uploads, and remove parts of ended ones. Returns the number of parts. Raises StoreAway."""
        now_ms = self._shelf.now_ms()
        self._shelf.store.write_now(lambda connection: end_overdue(connection, now_ms))
        return self.remove_parts(None)

    def remove_parts(self, upload_id: str | None) -> int:
        """Remove the parts of one ended upload, or of all ended uploads. Returns their number. Raises StoreAway."""
        now_ms = self._shelf.now_ms()
        abandoned_ms = now_ms - int(2000 * self._shelf.settings.upload_seconds)
        found = self._shelf.store.read_now(lambda connection: useless_parts(connection, abandoned_ms, upload_id))
        self._remove(found)
        return len(found)

    async def _parts_to_join(self, tenant: str, upload_id: str, asked: UploadCompletion) -> Sequence[str] | None:
        now_ms = self._shelf.now_ms()
        return await self._shelf.store.read(
            lambda connection: parts_to_join(connection, tenant, upload_id, asked, now_ms)
        )

    async def _join(
        self, tenant: str, upload_id: str, asked: UploadCompletion, parts: Sequence[str], submitted_by: str | None
    ) -> None:
        """Write the file, and end the upload with it. Raises Overtaken."""
        draft = await self._shelf.storage.run(self._shelf.begin, tenant, submitted_by, bounded=False)
        dropped = True
        try:
            await self._copy(draft, parts, asked.md5)
            await self._shelf.storage.run(draft.writer.commit)
            now_ms = self._shelf.now_ms()
            # Even if the store's answer is lost, the upload may have the file, so only the sweep may remove the file.
            dropped = False
            kept = await self._shelf.store.write(
                lambda connection: complete(connection, tenant, upload_id, asked, draft.id, draft.sha256, now_ms)
            )
            if not kept:
                dropped = True
                raise Overtaken
        finally:
            if dropped:
                await asyncio.shield(self._shelf.storage.run_anyway(self._shelf.drop, draft))

    async def _copy(self, draft: Draft, parts: Sequence[str], md5: str | None) -> None:
        """Append the parts to the draft. Raises ApiError (400) if the MD5 of the parts is not `md5`."""
        digest = hashlib.md5(usedforsecurity=False)

        def some(pieces: Iterator[bytes]) -> bool:
            before = draft.size
            for piece in islice(pieces, _PIECES):
                draft.write(piece)
                digest.update(piece)
            return draft.size > before

        for part in parts:
            pieces = self._shelf.blobs.read(part)
            while await self._shelf.storage.run(some, pieces):
                pass
        if md5 is not None and digest.hexdigest() != md5.lower():
            raise ApiError(400, "checksum_mismatch", "The parts in this order have another MD5 than `md5`.", "md5")

    def _remove(self, parts: Sequence[str]) -> None:
        """Remove the blobs of parts, then their rows; the sweep repeats what fails."""
        try:
            for identifier in parts:
                self._shelf.blobs.delete(identifier)
            self._forget(parts)
        except (BlobError, StoreAway) as error:
            log.warning(
                "Parts of an upload could not be removed; the sweep tries again.",
                action="part-removal-failed",
                reason=str(error),
            )

    def _forget(self, parts: Sequence[str]) -> None:
        if parts:
            self._shelf.store.write_now(lambda connection: forget_parts(connection, parts))
