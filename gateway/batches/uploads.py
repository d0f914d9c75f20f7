"""Rows of uploads, whose files arrive in parts. Every function runs in a change or a query; times are Unix ms.

Source: OpenAI's API reference, "Uploads".
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, StringConstraints
from sqlalchemy import Connection, Row, and_, func, or_, select

from gateway.batches import files
from gateway.batches.files import ExpiresAfter, FileRow, FileTerms, Purpose, file_object
from gateway.errors import ApiError, conflict, not_found
from gateway.store.tables import upload_parts, uploads
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
