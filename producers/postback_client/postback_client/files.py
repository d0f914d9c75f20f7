"""Files over HTTPS: upload, list, download, delete."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import requests

from postback_client.batch import StoredFile
from postback_client.errors import Unreachable, UnreadableAnswer
from postback_client.http_session import HttpSession
from postback_client.paging import listed
from postback_client.parts import PART_BYTES, PartedUpload
from postback_client.shapes import read

FILES = "/v1/files"
_PIECE_BYTES = 256 * 1024
_UPLOADS, _DOWNLOADS = 3, 8

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were transferred so far."""


def ignore(_: object) -> None:
    """Do nothing."""


class Files:
    """A tenant's files.

    All methods may raise PostbackError; those that read or write a local file may also raise OSError.
    """

    def __init__(self, http: HttpSession) -> None:
        self._http = http

    def upload(
        self,
        path: str | Path,
        *,
        purpose: str = "batch",
        state: str | Path | None = None,
        on_bytes: OnBytes = ignore,
    ) -> StoredFile:
        """Upload a file without reading it into memory as a whole.

        A file of more than 4 MiB is uploaded in parts; after a lost connection, the upload repeats only the part that
        was cut off. `state` is the path of a file in which this call records the parts that the gateway has. With this
        state file, another process can continue the upload within an hour. The state file is removed when the upload
        ends.
        """
        source, kept = Path(path), None if state is None else Path(state)
        if source.stat().st_size > PART_BYTES:
            return PartedUpload(self._http, source, purpose, on_bytes, kept).run()
        return self._uploaded(source, purpose, on_bytes)

    def retrieve(self, file_id: str) -> StoredFile:
        """Return a file's name and size. Raises NotFound."""
        return read(StoredFile, self._http.json("GET", _place(file_id)))

    def list(self, *, purpose: str | None = None) -> Iterator[StoredFile]:
        """Iterate over the files, the newest first: all files, or those with the given purpose."""
        params = {} if purpose is None else {"purpose": purpose}
        return listed(self._http, FILES, StoredFile, params)

    def delete(self, file_id: str) -> None:
        """Delete a file with its content. Raises NotFound, and Conflict while a batch reads the file."""
        self._http.call("DELETE", _place(file_id))

    def download(self, file_id: str, path: str | Path, *, on_bytes: OnBytes = ignore) -> None:
        """Write a file's content to a path.

        A file at this path is replaced only when the content is complete. After a lost connection, the download
        continues at the next byte.
        """
        target = Path(path)
        part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("xb") as out:
                self._fetch(self.retrieve(file_id), out.write, on_bytes)
                out.flush()
                os.fsync(out.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _uploaded(self, path: Path, purpose: str, on_bytes: OnBytes) -> StoredFile:
        """Upload a file in one request.

        If only the answer is lost, the file is uploaded again, and the first copy remains unused.
        """
        attempt = 1
        while True:
            boundary = secrets.token_hex(16)
            body = _form(path, purpose, boundary, on_bytes)
            headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
            try:
                return read(StoredFile, self._http.json("POST", FILES, body=body, headers=headers))
            except Unreachable:
                if attempt == _UPLOADS:
                    raise
            attempt += 1
            self._http.clock.sleep(attempt)

    def _fetch(self, file: StoredFile, write: Callable[[bytes], object], on_bytes: OnBytes) -> None:
        done, lost = 0, 0
        while done < file.bytes:
            before = done
            answer = self._http.call(
                "GET", f"{_place(file.id)}/content", headers={"range": f"bytes={done}-"}, stream=True
            )
            with answer:
                if answer.status_code != 206 and done:
                    raise UnreadableAnswer("the gateway does not go on where the download was cut off")
                try:
                    for piece in answer.iter_content(_PIECE_BYTES):
                        write(piece)
                        done += len(piece)
                        on_bytes(done)
                except requests.RequestException:
                    pass  # the next request continues from `done`
            lost = lost + 1 if done == before else 0
            if lost == _DOWNLOADS:
                raise Unreachable(f"the download of {file.id} stopped after {done} of {file.bytes} bytes")


def _form(path: Path, purpose: str, boundary: str, on_bytes: OnBytes) -> Iterator[bytes]:
    """Yield the form of an upload in pieces. Source: RFC 7578."""
    name = path.name.encode("ascii", "replace").replace(b'"', b"'").replace(b"\\", b"/").decode()
    disposition = "content-disposition: form-data; name="
    with path.open("rb") as content:
        yield f'--{boundary}\r\n{disposition}"purpose"\r\n\r\n{purpose}\r\n'.encode()
        yield (
            f'--{boundary}\r\n{disposition}"file"; filename="{name}"\r\ncontent-type: application/octet-stream\r\n\r\n'
        ).encode()
        sent = 0
        while piece := content.read(_PIECE_BYTES):
            yield piece
            sent += len(piece)
            on_bytes(sent)
        yield f"\r\n--{boundary}--\r\n".encode()


def _place(file_id: str) -> str:
    return f"{FILES}/{quote(file_id, safe='')}"
