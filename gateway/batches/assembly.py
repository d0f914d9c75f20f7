"""Uploads in parts with their contents: each part is a blob, and completing an upload joins its parts to a file.

The order of writes leaves no blob without a row. Each attempt to join writes a file of its own. The last step is
compare-and-set on the upload's status, so one process wins, and any other process removes its file.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from weakref import WeakValueDictionary

from sqlalchemy import Connection

from gateway.batches import files, uploads
from gateway.batches.files import FileRow
from gateway.batches.shelf import Draft, Shelf
from gateway.batches.uploads import PartRow, UploadCompletion, UploadRequest, UploadRow
from gateway.blobs.base import BlobError, BlobMissing, BlobsAway
from gateway.errors import ApiError
from gateway.store.store import StoreAway
from producers.identity import new_hex
from telemetry.logs import get_logger

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
            lambda connection: uploads.create(connection, identifier, tenant, terms, now_ms, most)
        )

    def begin_part(self, tenant: str, upload_id: str) -> Draft:
        """Begin a part. Raises ApiError (400, 404, 409, 413), BlobsAway and StoreAway."""
        identifier, now_ms = f"part_{new_hex(self._shelf.clock)}", self._shelf.now_ms()
        most = self._shelf.settings.tenant_bytes
        self._shelf.store.write_now(
            lambda connection: uploads.begin_part(connection, identifier, tenant, upload_id, now_ms, most)
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
            return uploads.store_part(connection, draft.id, draft.tenant, upload_id, draft.size, now_ms)

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
        return await self._shelf.store.read(lambda connection: uploads.find(connection, tenant, upload_id))

    async def cancel(self, tenant: str, upload_id: str) -> UploadRow:
        """End an upload without a file. Raises ApiError (404, 409) and StoreAway."""
        now_ms = self._shelf.now_ms()
        row = await self._shelf.store.write(lambda connection: uploads.cancel(connection, tenant, upload_id, now_ms))
        await self._shelf.storage.run_anyway(self.remove_parts, upload_id)
        return row

    async def file_of(self, row: UploadRow) -> FileRow | None:
        """Return the file of a completed upload; None if there is none."""
        now_ms = self._shelf.now_ms()
        return await self._shelf.store.read(lambda connection: uploads.file_of(connection, row, now_ms))

    def sweep(self) -> int:
        """Expire overdue uploads, and remove parts of ended ones. Returns the number of parts. Raises StoreAway."""
        now_ms = self._shelf.now_ms()
        self._shelf.store.write_now(lambda connection: uploads.end_overdue(connection, now_ms))
        return self.remove_parts(None)

    def remove_parts(self, upload_id: str | None) -> int:
        """Remove the parts of one ended upload, or of all ended uploads. Returns their number. Raises StoreAway."""
        now_ms = self._shelf.now_ms()
        abandoned_ms = now_ms - int(2000 * self._shelf.settings.upload_seconds)
        found = self._shelf.store.read_now(
            lambda connection: uploads.useless_parts(connection, abandoned_ms, upload_id)
        )
        self._remove(found)
        return len(found)

    async def _parts_to_join(self, tenant: str, upload_id: str, asked: UploadCompletion) -> Sequence[str] | None:
        now_ms = self._shelf.now_ms()
        return await self._shelf.store.read(
            lambda connection: uploads.parts_to_join(connection, tenant, upload_id, asked, now_ms)
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
                lambda connection: uploads.complete(
                    connection, tenant, upload_id, asked, draft.id, draft.sha256, now_ms
                )
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
            self._shelf.store.write_now(lambda connection: uploads.forget_parts(connection, parts))
