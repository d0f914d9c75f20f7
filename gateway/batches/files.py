"""Rows of files. Every function runs in a change or a query of the store; times are Unix milliseconds.

Source: OpenAI's API reference, "The file object".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from pydantic import Field
from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select

from gateway.batches.paging import PageQuery, RowPage, read_page
from gateway.errors import ApiError, conflict, not_found, validated
from gateway.store.states import LIVE
from gateway.store.tables import batches, files, upload_parts, uploads
from schemas.bounded import WireModel

Purpose = Literal["batch", "assistants", "fine-tune", "vision", "user_data", "evals"]
"""The purposes that OpenAI's SDKs send (`openai.types.FilePurpose`).

Only files of `batch` are used here; files of other purposes are only stored and returned.
"""
PURPOSES: Final[tuple[Purpose, ...]] = get_args(Purpose)
OUTPUT_PURPOSE: Final = "batch_output"
UNNAMED: Final = "file.jsonl"

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_NAME = 255

FileRow = Row[Any]


class ExpiresAfter(WireModel):
    """The life of a file."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)
    """The bounds are the same as OpenAI's."""


class FileFields(WireModel):
    """The fields of an upload's form."""

    purpose: Purpose
    expires_after: ExpiresAfter | None = None


@dataclass(frozen=True, slots=True)
class FileTerms:
    """The fields of an upload, without its content."""

    purpose: str
    filename: str
    expires_seconds: int | None


def file_terms(filename: str | None, fields: Mapping[str, str]) -> FileTerms:
    """Check the fields of an upload's form. Raises ApiError (400)."""
    said: dict[str, Any] = {"purpose": fields["purpose"]} if "purpose" in fields else {}
    parts = {name: fields.get(f"expires_after[{name}]") for name in ExpiresAfter.model_fields}
    expiry = {name: text for name, text in parts.items() if text is not None}
    checked = validated(FileFields, {**said, "expires_after": expiry or None}, strict=False)
    return FileTerms(checked.purpose, clean_filename(filename), seconds_of(checked.expires_after))


def seconds_of(expiry: ExpiresAfter | None) -> int | None:
    """Return the life of a file in seconds; None for a file that does not expire."""
    return None if expiry is None else expiry.seconds


def clean_filename(given: str | None) -> str:
    """Return the last part of a path, without control characters; a name is only shown, and never opened."""
    name = _UNPRINTABLE.sub("", (given or "").replace("\\", "/").rpartition("/")[2]).strip()
    return name[:_LONGEST_NAME] if name.strip(".") else UNNAMED


def begin(
    connection: Connection,
    identifier: str,
    tenant: str,
    now_ms: int,
    submitted_by: str | None,
    tenant_bytes: int | None,
) -> None:
    """Write the row of a file whose first byte is still to come. Raises ApiError (413) if the tenant lacks room."""
    if tenant_bytes is not None:
        require_room(connection, tenant, 1, tenant_bytes, "file")
    row = {"id": identifier, "tenant": tenant, "created_at": now_ms, "submitted_by": submitted_by}
    connection.execute(files.insert().values(**row, purpose="", filename="", bytes=0, sha256=""))


def require_room(connection: Connection, tenant: str, more_bytes: int, tenant_bytes: int, param: str) -> None:
    """Raise ApiError (413) if the tenant's space has no room. Parts of pending uploads take space as files do."""
    of_files = select(func.coalesce(func.sum(files.c.bytes), 0)).where(
        files.c.tenant == tenant, files.c.deleted_at.is_(None)
    )
    of_parts = (
        select(func.coalesce(func.sum(upload_parts.c.bytes), 0))
        .join(uploads, uploads.c.id == upload_parts.c.upload_id)
        .where(uploads.c.tenant == tenant, uploads.c.status == "pending")
    )
    held = connection.execute(of_files).scalar_one() + connection.execute(of_parts).scalar_one()
    if held + more_bytes > tenant_bytes:
        message = f"The tenant's files have {held} bytes, and may have {tenant_bytes}; delete some."
        raise ApiError(413, "storage_full", message, param)


def store(connection: Connection, identifier: str, terms: FileTerms, size: int, sha256: str, now_ms: int) -> FileRow:
    """Make a file visible.

    Raises ApiError (408) if the file's row was removed meanwhile because the write took too long.
    """
    expires_at = None if terms.expires_seconds is None else now_ms + 1000 * terms.expires_seconds
    said = {"purpose": terms.purpose, "filename": terms.filename, "bytes": size, "sha256": sha256}
    this = and_(files.c.id == identifier, files.c.deleted_at.is_(None))
    made = files.update().where(this).values(**said, expires_at=expires_at, created_at=now_ms, stored_at=now_ms)
    if connection.execute(made).rowcount == 0:
        raise ApiError(408, "upload_too_slow", "The upload took too long; send the file again.", "file")
    return connection.execute(select(files).where(this)).one()


def find(connection: Connection, tenant: str, identifier: str, now_ms: int, *, lock: bool = False) -> FileRow:
    """Return the row of a tenant's file. `lock` locks the row until the end of the change. Raises ApiError (404)."""
    statement = select(files).where(files.c.id == identifier, *_visible(tenant, now_ms))
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    if row is None:
        raise not_found("file", identifier)
    return row


def named(connection: Connection, tenant: str, name: str, now_ms: int, limit: int) -> Sequence[FileRow]:
    """Return a tenant's files with this id or file name, newest first."""
    this = select(files).where(or_(files.c.id == name, files.c.filename == name), *_visible(tenant, now_ms))
    return connection.execute(this.order_by(files.c.id.desc()).limit(limit)).all()


def names_of(connection: Connection, tenant: str, identifiers: Collection[str]) -> dict[str, str]:
    """Return the names of the tenant's files with these ids, also of files that have expired."""
    these = (files.c.tenant == tenant) & files.c.id.in_(identifiers)
    found = connection.execute(select(files.c.id, files.c.filename).where(these))
    return {row.id: row.filename for row in found}


def page(connection: Connection, tenant: str, query: PageQuery, purpose: str | None, now_ms: int) -> RowPage:
    """Return one page of a tenant's files; if `purpose` is given, only files of this purpose."""
    chosen = [] if purpose is None else [files.c.purpose == purpose]
    return read_page(connection, files, [*_visible(tenant, now_ms), *chosen], query)


def mark_deleted(connection: Connection, tenant: str, identifier: str, now_ms: int) -> None:
    """Hide a file, so that its blob can be removed. Raises ApiError (404; 409 while a batch reads the file)."""
    find(connection, tenant, identifier, now_ms, lock=True)
    using = select(batches.c.id).where(batches.c.input_file_id == identifier, batches.c.status.in_(LIVE)).limit(1)
    if (user := connection.execute(using).scalar_one_or_none()) is not None:
        message = f"Batch {user} reads the file; wait for its end, or cancel the batch first."
        raise conflict("file_in_use", message, "file_id")
    connection.execute(files.update().where(files.c.id == identifier).values(deleted_at=now_ms))


def mark_overdue(connection: Connection, now_ms: int, abandoned_ms: int) -> list[str]:
    """Hide expired files, and unfinished ones begun before `abandoned_ms`; return the ids of all hidden files."""
    used = select(batches.c.input_file_id).where(batches.c.status.in_(LIVE))
    expired = and_(files.c.expires_at <= now_ms, files.c.id.not_in(used))
    abandoned = and_(files.c.stored_at.is_(None), files.c.created_at < abandoned_ms)
    hidden = files.c.deleted_at.is_(None)
    connection.execute(files.update().where(hidden, or_(expired, abandoned)).values(deleted_at=now_ms))
    return list(connection.execute(select(files.c.id).where(files.c.deleted_at.is_not(None)).limit(1000)).scalars())


def forget(connection: Connection, identifier: str) -> None:
    """Remove a row whose blob is removed."""
    connection.execute(files.delete().where(files.c.id == identifier))


def file_object(row: FileRow) -> dict[str, Any]:
    """Return the JSON object of a file, in OpenAI's form."""
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": row.created_at // 1000,
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": None if row.expires_at is None else row.expires_at // 1000,
    }


def _visible(tenant: str, now_ms: int) -> tuple[ColumnElement[bool], ...]:
    unexpired = or_(files.c.expires_at.is_(None), files.c.expires_at > now_ms)
    return files.c.tenant == tenant, files.c.stored_at.is_not(None), files.c.deleted_at.is_(None), unexpired
