"""The file of a form, written while it arrives. After an error, the file is removed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from gateway.batches.shelf import Draft
from gateway.dependency import Dependency
from gateway.door.body import expect_body
from gateway.door.file_form import OVERHEAD_BYTES, FileForm
from gateway.errors import ApiError

WRITE_BYTES = 256 * 1024
"""This many bytes are collected before a thread writes them."""

T = TypeVar("T")


def file_form(request: Request, file: str, most_bytes: int) -> FileForm:
    """Check the headers of a form whose file has at most `most_bytes`. Raises ApiError (400, 413, 415)."""
    expect_body(request, most_bytes + OVERHEAD_BYTES)
    return FileForm(request.headers.get("content-type"), file)


@dataclass(frozen=True, slots=True)
class Receiving:
    """A file that is being written into a draft, and the limits of its size and time."""

    storage: Dependency
    draft: Draft
    form: FileForm
    most_bytes: int
    most_seconds: float

    async def kept(self, request: Request, keep: Callable[[], Awaitable[T]], drop: Callable[[], None]) -> T:
        """Write the whole file, and return the result of `keep`. After an error, `drop` runs in a thread.

        Raises ApiError (400, 408, 413), BlobsAway, and the errors of `keep`.
        """
        try:
            async with asyncio.timeout(self.most_seconds):
                await self._write(request)
                self.form.finish()
                return await keep()
        except BaseException as error:
            await asyncio.shield(self.storage.run_anyway(drop))
            if isinstance(error, ClientDisconnect):
                raise ApiError(400, "upload_cut_off", "The connection ended before the file was whole.") from None
            if isinstance(error, TimeoutError):
                raise ApiError(408, "upload_too_slow", "The upload took too long; send the file again.") from None
            raise

    async def _write(self, request: Request) -> None:
        received = 0
        async for chunk in request.stream():
            received += len(chunk)
            self._bound(received - OVERHEAD_BYTES)
            self.form.feed(chunk)
            self._bound(self.draft.size + self.form.pending_bytes)
            if self.form.pending_bytes >= WRITE_BYTES:
                await self.storage.run(self.draft.write, self.form.take())
        await self.storage.run(self.draft.write, self.form.take())

    def _bound(self, size: int) -> None:
        if size > self.most_bytes:
            message = f"`{self.form.file}` has more than {self.most_bytes} bytes; split it."
            raise ApiError(413, "file_too_large", message, param=self.form.file)
