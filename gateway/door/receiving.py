"""The form of an upload, parsed while it arrives: small fields are kept, the file's bytes are written.

After an error, the file is removed. The file may come before the fields (OpenAI's Node SDK sends it first), and a
chunked body has no length. Sources: RFC 7578, RFC 2046 section 5.1; python-multipart's `MultipartParser`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from gateway.batches.files import Draft, Shelf
from gateway.door.body import expect_body
from gateway.errors import ApiError, OutcomeUnknown

OVERHEAD_BYTES = 64 * 1024
"""The maximum number of bytes that a form may have besides its file: boundaries, headers and fields."""
MOST_PARTS = 32
MOST_FIELD_BYTES = 4096
_FORM = b"multipart/form-data"


class FileForm:
    """A push parser for one form. After each `feed`, `take` returns the file's new bytes."""

    def __init__(self, content_type: str | None, file: str = "file") -> None:
        """Expect the file in the part with this name. Raises ApiError (400, 415) for a body that is no form."""
        self.file = file
        kind, options = parse_options_header(content_type or "")
        boundary = options.get(b"boundary", b"")
        if kind != _FORM or not boundary:
            raise ApiError(415, "unsupported_media_type", "Send the file as `multipart/form-data` with a boundary.")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                    "on_end": self._finish,
                },
            )
        except FormParserError:
            raise ApiError(400, "invalid_form", "The form's boundary has more than 70 characters.") from None
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.has_file = False
        self.complete = False
        """True once the form's last boundary has arrived."""
        self.pending_bytes = 0
        """The number of the file's bytes that `take` would return."""
        self._pieces: list[bytes] = []
        self._parts = 0
        self._headers: dict[str, bytes] = {}
        self._header = [bytearray(), bytearray()]
        self._name = ""
        self._value = bytearray()

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the body. Raises ApiError (400)."""
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise ApiError(400, "invalid_form", "The body is not a well-formed multipart form.") from None

    def take(self) -> bytes:
        """Return the bytes of the file that arrived since the last call."""
        taken, self._pieces, self.pending_bytes = b"".join(self._pieces), [], 0
        return taken

    def finish(self) -> None:
        """Check a form whose body has ended. Raises ApiError (400)."""
        if not self.complete:
            raise ApiError(400, "invalid_form", "The body ended before the form's last boundary.")
        if not self.has_file:
            raise ApiError(400, "missing_required_parameter", f"The form has no part `{self.file}`.", param=self.file)

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise ApiError(400, "invalid_form", f"The form has more than {MOST_PARTS} parts.")
        self._headers, self._name, self._value = {}, "", bytearray()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _header_end(self) -> None:
        name, value = self._header
        self._headers[name.decode("latin-1").lower()] = bytes(value)
        self._header = [bytearray(), bytearray()]

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name != self.file:
            return
        if self.has_file:
            message = f"The form has more than one part `{self.file}`."
            raise ApiError(400, "invalid_form", message, param=self.file)
        self.has_file = True
        filename = options.get(b"filename")
        self.filename = None if filename is None else filename.decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == self.file:
            self._pieces.append(data[start:end])
            self.pending_bytes += end - start
            return
        self._value += data[start:end]
        if len(self._value) > MOST_FIELD_BYTES:
            raise ApiError(400, "invalid_form", f"A field of the form has more than {MOST_FIELD_BYTES} bytes.")

    def _end(self) -> None:
        if self._name != self.file:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _finish(self) -> None:
        self.complete = True


WRITE_BYTES = 256 * 1024
"""This many bytes are collected before a thread writes them."""

T = TypeVar("T")

_UNANSWERED = (OutcomeUnknown, TimeoutError, asyncio.CancelledError)
"""Errors after which a change may be committed all the same."""


def file_form(request: Request, file: str, most_bytes: int) -> FileForm:
    """Check the headers of a form whose file has at most `most_bytes`. Raises ApiError (400, 413, 415)."""
    expect_body(request, most_bytes + OVERHEAD_BYTES)
    return FileForm(request.headers.get("content-type"), file)


@dataclass(frozen=True, slots=True)
class Receiving:
    """A file that is being written into a draft, and the limits of its size and time."""

    shelf: Shelf
    draft: Draft
    form: FileForm
    most_bytes: int

    async def kept(self, request: Request, keep: Callable[[], Awaitable[T]]) -> T:
        """Write the whole file, and return the result of `keep`. After an error, the file is removed.

        If the answer of the store is lost, the store may have the file, so only the sweep may remove it.

        Raises ApiError (400, 408, 413), BlobsAway, and the errors of `keep`.
        """
        keeping = False
        try:
            async with asyncio.timeout(self.shelf.settings.upload_seconds):
                await self._write(request)
                self.form.finish()
                keeping = True
                return await keep()
        except BaseException as error:
            if not (keeping and isinstance(error, _UNANSWERED)):
                await asyncio.shield(self.shelf.storage.run_anyway(self.shelf.drop, self.draft))
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
                await self.shelf.storage.run(self.draft.write, self.form.take())
        await self.shelf.storage.run(self.draft.write, self.form.take())

    def _bound(self, size: int) -> None:
        if size > self.most_bytes:
            message = f"`{self.form.file}` has more than {self.most_bytes} bytes; split it."
            raise ApiError(413, "file_too_large", message, param=self.form.file)
