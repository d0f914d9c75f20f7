"""Files of tenants: a row of the store and a blob, written in an order that leaves no blob without a row.

A part of an upload is a file too: its row names the upload, and it is in no list of files.
A function with a connection runs in a change or a query of the store; times are Unix milliseconds.
Source: OpenAI's API reference, "The file object".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from pydantic import Field
from sqlalchemy import ColumnElement, Connection, Row, and_, func, or_, select

from gateway.blobs.base import BlobError, Blobs, BlobsAway, BlobWriter
from gateway.blobs.settings import FilesSettings
from gateway.dependency import Dependency
from gateway.errors import ApiError, conflict, validated
from gateway.paging import PageQuery, RowPage, find_row, read_page
from gateway.store.states import LIVE
from gateway.store.store import Store, StoreAway
from gateway.store.tables import batches, files
from producers.identity import new_hex
from schemas.bounded import WireModel
from telemetry.clock import Clock, unix_ms
from telemetry.logs import get_logger

Purpose = Literal["batch", "assistants", "fine-tune", "vision", "user_data", "evals"]
"""The purposes that OpenAI's SDKs send (`openai.types.FilePurpose`).

Only files of `batch` are used here; files of other purposes are only stored and returned.
"""
PURPOSES: Final[tuple[Purpose, ...]] = get_args(Purpose)
OUTPUT_PURPOSE: Final = "batch_output"
UNNAMED: Final = "file.jsonl"
RANGES_AT_ONCE = 3
"""The maximum number of ranges of batches that are in memory at once. Each range has a few MiB at most."""
STORAGE_CALLS, STORAGE_WAITING = 16, 64
"""The maximum number of calls of requests to the storage at once, and of calls that wait."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_NAME = 255

FileRow = Row[Any]

log = get_logger()


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

    purpose: str = ""
    filename: str = ""
    expires_seconds: int | None = None


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


# -- a file that is written --------------------------------------------------------------------------------------------


class Draft:
    """A file, or a part of one, that is being written. Its bytes are hashed and counted while they are written."""

    def __init__(self, identifier: str, writer: BlobWriter, tenant: str, upload_id: str | None = None) -> None:
        self.id = identifier
        self.writer = writer
        self.tenant = tenant
        self.upload_id = upload_id
        """The upload of which the draft is a part; None for a whole file."""
        self.size = 0
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the bytes so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append bytes. Blocks. Raises BlobsAway."""
        self.writer.write(data)
        self._hash.update(data)
        self.size += len(data)


def nothing_else(_connection: Connection) -> None:
    """Require nothing but room of a file that begins."""


class Shelf:
    """The files of all tenants. Its methods block: call them by `storage.run`, or in a thread."""

    def __init__(self, store: Store, blobs: Blobs, settings: FilesSettings, clock: Clock) -> None:
        self.store = store
        self.blobs = blobs
        self.settings = settings
        self.clock = clock
        self.storage = Dependency("the storage of files", STORAGE_CALLS, STORAGE_WAITING)
        """Runs the blocking methods for requests."""
        self.ranges = Dependency("ranges of batches", RANGES_AT_ONCE, 0)
        """Runs the blocking methods for the expansion of batches."""

    def close(self) -> None:
        """End the threads."""
        self.storage.close()
        self.ranges.close()

    def now_ms(self) -> int:
        """Return the present time in Unix milliseconds."""
        return unix_ms(self.clock)

    def begin(
        self,
        tenant: str,
        submitted_by: str | None,
        upload_id: str | None = None,
        require: Callable[[Connection], None] = nothing_else,
        *,
        bounded: bool = True,
    ) -> Draft:
        """Begin a file, or a part of an upload: write its row before the first byte of its blob.

        Raises ApiError (413), the errors of `require`, BlobsAway and StoreAway.

        Without `bounded`, the file may exceed the tenant's space, so that a batch's answers always find room.
        """
        identifier = f"{'file-' if upload_id is None else 'part_'}{new_hex(self.clock)}"
        row = {"id": identifier, "tenant": tenant, "created_at": self.now_ms(), "submitted_by": submitted_by}
        row |= {"upload_id": upload_id, "purpose": "", "filename": "", "bytes": 0, "sha256": ""}

        def change(connection: Connection) -> None:
            require(connection)
            if bounded:
                self.require_room(connection, tenant, 1, _field(upload_id))
            connection.execute(files.insert().values(**row))

        self.store.write_now(change)
        try:
            return Draft(identifier, self.blobs.create(identifier), tenant, upload_id)
        except BlobsAway:
            self._forget([identifier])
            raise

    def require_room(self, connection: Connection, tenant: str, more_bytes: int, param: str) -> None:
        """Raise ApiError (413) if the tenant's space has no room. Parts of pending uploads take space as files do."""
        mine = files.c.tenant == tenant, files.c.deleted_at.is_(None)
        held: int = connection.execute(select(func.coalesce(func.sum(files.c.bytes), 0)).where(*mine)).scalar_one()
        most = self.settings.tenant_bytes
        if held + more_bytes > most:
            message = f"The tenant's files have {held} bytes, and may have {most}; delete some."
            raise ApiError(413, "storage_full", message, param)

    def store_row(self, connection: Connection, draft: Draft, terms: FileTerms) -> FileRow:
        """Make a file or a part with a complete blob usable. Raises ApiError (408, 413)."""
        # Check the room again, because several concurrent uploads may have begun while there was room for only one.
        self.require_room(connection, draft.tenant, draft.size, _field(draft.upload_id))
        return store(connection, draft, terms, self.now_ms())

    def drop(self, draft: Draft) -> None:
        """Remove an unfinished file, or leave it to the sweep if the storage or the store is away."""
        draft.writer.abort()
        self.remove([draft.id])

    def remove(self, identifiers: Sequence[str]) -> None:
        """Remove the blobs of hidden or unfinished files, then their rows; the sweep repeats what fails."""
        try:
            for identifier in identifiers:
                self.blobs.delete(identifier)
            self._forget(identifiers)
        except (BlobError, StoreAway) as error:
            log.warning(
                "The contents of files could not be removed; the sweep tries again.",
                action="file-removal-failed",
                file_ids=list(identifiers),
                reason=str(error),
            )

    def _forget(self, identifiers: Sequence[str]) -> None:
        """Remove the rows of files whose blobs are removed. Raises StoreAway."""
        if identifiers:
            self.store.write_now(
                lambda connection: connection.execute(files.delete().where(files.c.id.in_(identifiers))).rowcount
            )


def _field(upload_id: str | None) -> str:
    """Return the field of the form that has a file's, or a part's, content."""
    return "file" if upload_id is None else "data"


# -- rows --------------------------------------------------------------------------------------------------------------


def store(connection: Connection, draft: Draft, terms: FileTerms, now_ms: int) -> FileRow:
    """Make a file visible, or a part usable.

    Raises ApiError (408) if the file's row was removed meanwhile because the write took too long.
    """
    expires_at = None if terms.expires_seconds is None else now_ms + 1000 * terms.expires_seconds
    said = {"purpose": terms.purpose, "filename": terms.filename, "bytes": draft.size, "sha256": draft.sha256}
    this = and_(files.c.id == draft.id, files.c.deleted_at.is_(None))
    made = files.update().where(this).values(**said, expires_at=expires_at, created_at=now_ms, stored_at=now_ms)
    if connection.execute(made).rowcount == 0:
        message = "The upload took too long; send the file again."
        raise ApiError(408, "upload_too_slow", message, _field(draft.upload_id))
    return connection.execute(select(files).where(this)).one()


def find(connection: Connection, tenant: str, identifier: str, now_ms: int, *, lock: bool = False) -> FileRow:
    """Return the row of a tenant's file. `lock` locks the row until the end of the change. Raises ApiError (404)."""
    return find_row(connection, files, "file", tenant, identifier, *_visible(now_ms), lock=lock)


def named(connection: Connection, tenant: str, name: str, now_ms: int, limit: int) -> Sequence[FileRow]:
    """Return a tenant's files with this id or file name, newest first."""
    these = files.c.tenant == tenant, or_(files.c.id == name, files.c.filename == name), *_visible(now_ms)
    return connection.execute(select(files).where(*these).order_by(files.c.id.desc()).limit(limit)).all()


def names_of(connection: Connection, tenant: str, identifiers: Collection[str]) -> dict[str, str]:
    """Return the names of the tenant's files with these ids, also of files that have expired."""
    these = (files.c.tenant == tenant) & files.c.id.in_(identifiers)
    found = connection.execute(select(files.c.id, files.c.filename).where(these))
    return {row.id: row.filename for row in found}


def page(connection: Connection, tenant: str, query: PageQuery, purpose: str | None, now_ms: int) -> RowPage:
    """Return one page of a tenant's files; if `purpose` is given, only files of this purpose."""
    chosen = [] if purpose is None else [files.c.purpose == purpose]
    return read_page(connection, files, [files.c.tenant == tenant, *_visible(now_ms), *chosen], query)


def mark_deleted(connection: Connection, tenant: str, identifier: str, now_ms: int) -> None:
    """Hide a file, so that its blob can be removed. Raises ApiError (404; 409 while a batch reads the file)."""
    find(connection, tenant, identifier, now_ms, lock=True)
    using = select(batches.c.id).where(batches.c.input_file_id == identifier, batches.c.status.in_(LIVE)).limit(1)
    if (user := connection.execute(using).scalar_one_or_none()) is not None:
        message = f"Batch {user} reads the file; wait for its end, or cancel the batch first."
        raise conflict("file_in_use", message, "file_id")
    hide(connection, [files.c.id == identifier], now_ms)


def hide(connection: Connection, these: Iterable[ColumnElement[bool]], now_ms: int) -> None:
    """Hide files, whose blobs can then be removed."""
    connection.execute(files.update().where(files.c.deleted_at.is_(None), *these).values(deleted_at=now_ms))


def hide_overdue(connection: Connection, now_ms: int, abandoned_ms: int) -> None:
    """Hide expired files that no batch reads, and unfinished ones begun before `abandoned_ms`."""
    used = select(batches.c.input_file_id).where(batches.c.status.in_(LIVE))
    expired = and_(files.c.expires_at <= now_ms, files.c.id.not_in(used))
    abandoned = and_(files.c.stored_at.is_(None), files.c.created_at < abandoned_ms)
    hide(connection, [or_(expired, abandoned)], now_ms)


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


def _visible(now_ms: int) -> tuple[ColumnElement[bool], ...]:
    unexpired = or_(files.c.expires_at.is_(None), files.c.expires_at > now_ms)
    return files.c.upload_id.is_(None), files.c.stored_at.is_not(None), files.c.deleted_at.is_(None), unexpired
