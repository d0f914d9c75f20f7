"""Files with their contents: a row of the store and a blob, written in an order that leaves no blob without a row."""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection

from gateway.batches import files
from gateway.batches.files import FileRow, FileTerms
from gateway.batches.paging import PageQuery, RowPage
from gateway.blobs.base import BlobError, Blobs, BlobsAway, BlobWriter
from gateway.blobs.settings import FilesSettings
from gateway.dependency import Dependency
from gateway.store.store import Store, StoreAway
from producers.identity import new_hex
from telemetry.clock import Clock, unix_ms
from telemetry.logs import get_logger

RANGES_AT_ONCE = 3
"""The maximum number of ranges of batches that are in memory at once. Each range has a few MiB at most."""
STORAGE_CALLS, STORAGE_WAITING = 16, 64
"""The maximum number of calls of requests to the storage at once, and of calls that wait."""

log = get_logger()


class Shelf:
    """The files of all tenants. Methods without `async` block: call them by `storage.run`, or in a thread."""

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

    def begin(self, tenant: str, submitted_by: str | None, *, bounded: bool = True) -> Draft:
        """Begin a file. Raises ApiError (413), BlobsAway and StoreAway.

        Without `bounded`, the file may exceed the tenant's space, so that a batch's answers always find room.
        """
        identifier, now_ms = f"file-{new_hex(self.clock)}", self.now_ms()
        most = self.settings.tenant_bytes if bounded else None
        self.store.write_now(lambda connection: files.begin(connection, identifier, tenant, now_ms, submitted_by, most))
        try:
            return Draft(identifier, self.blobs.create(identifier), tenant)
        except BlobsAway:
            self._forget(identifier)
            raise

    def store_row(self, connection: Connection, draft: Draft, terms: FileTerms) -> FileRow:
        """Make a file with a complete blob visible. Raises ApiError (408, 413)."""
        # Check the room again, because several concurrent uploads may have begun while there was room for only one.
        files.require_room(connection, draft.tenant, draft.size, self.settings.tenant_bytes, "file")
        return files.store(connection, draft.id, terms, draft.size, draft.sha256, self.now_ms())

    def drop(self, draft: Draft) -> None:
        """Remove an unfinished file, or leave it to the sweep if the storage or the store is away."""
        draft.writer.abort()
        self.remove(draft.id)

    async def find(self, tenant: str, identifier: str) -> FileRow:
        """Return a file's row. Raises ApiError (404)."""
        return await self.store.read(lambda connection: files.find(connection, tenant, identifier, self.now_ms()))

    async def page(self, tenant: str, query: PageQuery, purpose: str | None) -> RowPage:
        """Return one page of a tenant's files."""
        return await self.store.read(lambda connection: files.page(connection, tenant, query, purpose, self.now_ms()))

    async def delete(self, tenant: str, identifier: str) -> None:
        """Delete a file. Raises ApiError (404, 409)."""
        now_ms = self.now_ms()
        await self.store.write(lambda connection: files.mark_deleted(connection, tenant, identifier, now_ms))
        await self.storage.run_anyway(self.remove, identifier)

    def sweep(self) -> int:
        """Remove expired and deleted files, and leftovers of writes that were cut off. Returns their number."""
        now_ms = self.now_ms()
        abandoned_ms = now_ms - int(2000 * self.settings.upload_seconds)
        found = self.store.write_now(lambda connection: files.mark_overdue(connection, now_ms, abandoned_ms))
        for identifier in found:
            self.remove(identifier)
        return len(found)

    def remove(self, identifier: str) -> None:
        """Remove a hidden or unfinished file's blob, then its row; the sweep repeats what fails."""
        try:
            self.blobs.delete(identifier)
            self._forget(identifier)
        except (BlobError, StoreAway) as error:
            log.warning(
                "A file's content could not be removed; the sweep tries again.",
                action="file-removal-failed",
                file_id=identifier,
                reason=str(error),
            )

    def _forget(self, identifier: str) -> None:
        """Remove a file's row. Raises StoreAway."""
        self.store.write_now(lambda connection: files.forget(connection, identifier))


class Draft:
    """A file, or a part of one, that is being written.

    The file's bytes are hashed and counted while they are written.
    """

    def __init__(self, identifier: str, writer: BlobWriter, tenant: str) -> None:
        self.id = identifier
        self.writer = writer
        self.tenant = tenant
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
