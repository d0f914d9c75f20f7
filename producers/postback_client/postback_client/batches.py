"""Batches over HTTPS: upload a file of requests, follow it, and download the answers."""

from __future__ import annotations

import json
import os
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from postback_client.batch import Batch, StoredFile
from postback_client.clock import TimeLimit
from postback_client.errors import BatchStillRunning, InvalidRequest, PostbackError, Unreachable, UnreadableAnswer
from postback_client.http_session import HttpSession
from postback_client.shapes import parsed, read

BATCHES, FILES = "/v1/batches", "/v1/files"
_PIECE_BYTES = 256 * 1024
_FIRST_POLL_SECONDS, _POLL_SECONDS = 0.25, 5.0
_UPLOADS, _DOWNLOADS = 3, 8
_MOST_LINE_BYTES = 2 * 1024 * 1024

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were transferred so far."""
OnBatch = Callable[[Batch], None]
"""Called with the batch after each look at it."""


def _ignore(_: object) -> None:
    return None


class Batches:
    """A tenant's batches and their files. All methods raise PostbackError, and OSError for the caller's own files."""

    def __init__(self, http: HttpSession) -> None:
        self._http = http

    def create(
        self,
        path: str | Path,
        *,
        endpoint: str | None = None,
        metadata: Mapping[str, str] | None = None,
        on_bytes: OnBytes = _ignore,
    ) -> Batch:
        """Upload a file of OpenAI Batch lines, and begin a batch of it.

        `endpoint` is the URL of all lines; by default that of the first line.
        """
        url = endpoint if endpoint is not None else _first_url(Path(path))
        return self.begin(self.upload(path, on_bytes=on_bytes).id, endpoint=url, metadata=metadata)

    def begin(self, file_id: str, *, endpoint: str, metadata: Mapping[str, str] | None = None) -> Batch:
        """Begin a batch of a file that is uploaded. A repeat within the call does not begin another one."""
        terms = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h", "metadata": metadata}
        body = json.dumps({name: value for name, value in terms.items() if value is not None}, default=dict)
        headers = {"content-type": "application/json", "idempotency-key": uuid.uuid4().hex}
        return read(Batch, self._http.json("POST", BATCHES, body=body.encode(), headers=headers))

    def upload(self, path: str | Path, *, purpose: str = "batch", on_bytes: OnBytes = _ignore) -> StoredFile:
        """Upload a file, which is never in memory as a whole.

        A lost connection begins the upload again. If only the answer is lost, the first upload remains as a file that
        no batch uses.
        """
        attempt = 1
        while True:
            boundary = secrets.token_hex(16)
            body = _form(Path(path), purpose, boundary, on_bytes)
            headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
            try:
                return read(StoredFile, self._http.json("POST", FILES, body=body, headers=headers))
            except Unreachable:
                if attempt == _UPLOADS:
                    raise
            attempt += 1
            self._http.clock.sleep(attempt)

    def retrieve(self, batch_id: str) -> Batch:
        """Return a batch as it is now. Raises NotFound."""
        return read(Batch, self._http.json("GET", f"{BATCHES}/{_id(batch_id)}"))

    def list(self) -> Iterator[Batch]:
        """Yield all batches, the newest first."""
        params = {"limit": "100"}
        while True:
            page = self._http.json("GET", BATCHES, params=params)
            if not isinstance(page, dict) or not isinstance(page.get("data"), list):
                raise UnreadableAnswer("the answer is not a list of batches")
            found = [read(Batch, each) for each in page["data"]]
            yield from found
            if not found or page.get("has_more") is not True:
                return
            params["after"] = found[-1].id

    def cancel(self, batch_id: str) -> Batch:
        """Ask for a batch's cancellation. Raises Conflict for a batch that has ended."""
        return read(Batch, self._http.json("POST", f"{BATCHES}/{_id(batch_id)}/cancel"))

    def wait(self, batch_id: str, timeout: float | None = None, *, on_batch: OnBatch = _ignore) -> Batch:
        """Return the batch once it has ended. Raises BatchStillRunning after `timeout` seconds."""
        limit, pause = TimeLimit(self._http.clock, timeout), _FIRST_POLL_SECONDS
        while True:
            batch = self.retrieve(batch_id)
            on_batch(batch)
            if batch.ended:
                return batch
            if limit.passed:
                raise BatchStillRunning(batch)
            self._http.clock.sleep(limit.within(pause))
            pause = min(1.5 * pause, _POLL_SECONDS)

    def file(self, file_id: str) -> StoredFile:
        """Return a file's name and size. Raises NotFound."""
        return read(StoredFile, self._http.json("GET", f"{FILES}/{_id(file_id)}"))

    def download(self, file_id: str, path: str | Path, *, on_bytes: OnBytes = _ignore) -> None:
        """Write a file's content to a path, which is replaced once the content is whole.

        After a lost connection, the download goes on with the next byte.
        """
        target = Path(path)
        part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("xb") as out:
                self._fetch(self.file(file_id), out.write, on_bytes)
                out.flush()
                os.fsync(out.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def _fetch(self, file: StoredFile, write: Callable[[bytes], object], on_bytes: OnBytes) -> None:
        done, lost = 0, 0
        while done < file.bytes:
            before = done
            answer = self._http.call(
                "GET", f"{FILES}/{_id(file.id)}/content", headers={"range": f"bytes={done}-"}, stream=True
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
                    pass  # the next request goes on
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


def _first_url(path: Path) -> str:
    """Return the `url` of the file's first line. Raises InvalidRequest if it has none."""
    with path.open("rb") as lines:
        line = next((each for each in iter(lambda: lines.readline(_MOST_LINE_BYTES), b"") if each.strip()), b"")
    try:
        first: Any = parsed(line.removeprefix(b"\xef\xbb\xbf"))
    except PostbackError:
        first = None
    if not isinstance(first, dict) or not isinstance(first.get("url"), str):
        message = f"{path.name}: the first line is not an OpenAI Batch line with a `url`; nothing was sent"
        raise InvalidRequest(400, message, code="invalid_file", param="file")
    return str(first["url"])


def _id(identifier: str) -> str:
    return quote(identifier, safe="")
