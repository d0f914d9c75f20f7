"""Files over HTTPS: upload, list, download, delete.

Large files are uploaded in parts, so that an upload can continue after a lost connection, or in another process.
Source: OpenAI's API reference, "Files" and "Uploads".
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import requests

from postback_client.errors import Conflict, InvalidRequest, NotFound, Unreachable, UnreadableAnswer
from postback_client.http_session import HttpSession
from postback_client.shapes import parsed, read

FILES = "/v1/files"
_PIECE_BYTES = 256 * 1024
_DOWNLOADS = 8

UPLOADS = "/v1/uploads"
PART_BYTES = 4 * 1024 * 1024
"""The size of a part. After a lost connection, at most one part must be sent again. Only one part at a time is in
memory."""
MOST_PARTS = 1000
_STARTS = 3
_OTHER_CONTENT = frozenset({"checksum_mismatch", "bytes_mismatch", "part_not_found"})
"""The gateway answers with one of these error codes if the parts together are not the file. The file may have changed
during the upload."""
_COMPLETE_SECONDS = 600.0
_MOST_STATE_BYTES = 1024 * 1024

OnBytes = Callable[[int], None]
"""Called with the number of bytes that were transferred so far."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that the gateway keeps."""

    id: str
    bytes: int
    filename: str
    purpose: str
    created_at: int
    """Unix seconds."""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


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
        content = source.read_bytes()
        headers, body = _form("file", source.name, content, purpose)
        headers["idempotency-key"] = secrets.token_hex(16)  # a repeat leaves no second copy
        made = read(StoredFile, self._http.json("POST", FILES, body=body, headers=headers))
        on_bytes(len(content))
        return made

    def retrieve(self, file_id: str) -> StoredFile:
        """Return a file's name and size. Raises NotFound."""
        return read(StoredFile, self._http.json("GET", _place(file_id)))

    def list(self, *, purpose: str | None = None) -> Iterator[StoredFile]:
        """Iterate over the files, the newest first: all files, or those with the given purpose."""
        params = {} if purpose is None else {"purpose": purpose}
        return self._http.listed(FILES, StoredFile, params)

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


def _form(field: str, filename: str, content: bytes, purpose: str | None = None) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a form with one file. Source: RFC 7578."""
    boundary, disposition = secrets.token_hex(16), "content-disposition: form-data; name="
    name = filename.encode("ascii", "replace").replace(b'"', b"'").replace(b"\\", b"/").decode()
    asked = "" if purpose is None else f'--{boundary}\r\n{disposition}"purpose"\r\n\r\n{purpose}\r\n'
    head = f'{asked}--{boundary}\r\n{disposition}"{field}"; filename="{name}"\r\n\r\n'
    body = b"".join((head.encode(), content, f"\r\n--{boundary}--\r\n".encode()))
    return {"content-type": f"multipart/form-data; boundary={boundary}"}, body


def _place(file_id: str) -> str:
    return f"{FILES}/{quote(file_id, safe='')}"


@dataclass(frozen=True, slots=True)
class UploadState:
    """An unfinished upload, as the state file describes it."""

    gateway: str
    upload_id: str
    expires_at: int
    """Unix seconds."""
    bytes: int
    modified_ns: int
    """The file's time of modification, because a file that was changed must be uploaded from its start."""
    purpose: str
    part_bytes: int
    part_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Upload:
    id: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class _Made:
    """A part, or a completed upload with its file."""

    id: str
    file: StoredFile | None = None


class PartedUpload:
    """The upload of one file. `kept` is the path of the state file; if it is None, the state is in memory only."""

    def __init__(
        self, http: HttpSession, path: Path, purpose: str, on_bytes: Callable[[int], None], kept: Path | None
    ) -> None:
        self._http = http
        self._path = path
        self._purpose = purpose
        self._on_bytes = on_bytes
        self._kept = kept

    def run(self) -> StoredFile:
        """Upload the parts that are missing, and join them. Raises PostbackError and OSError.

        An upload that has expired, or that the gateway does not know, is started again.
        """
        state, starts = self._earlier(), 0
        while True:
            starts += 1
            try:
                made = self._sent(state or self._begun())
            except (NotFound, Conflict) as refused:
                if starts == _STARTS or refused.code not in ("upload_not_found", "upload_not_pending"):
                    raise
                state = None
            except InvalidRequest as refused:
                if refused.code in _OTHER_CONTENT:
                    self._forget()
                raise
            else:
                self._forget()
                return made

    def _begun(self) -> UploadState:
        size = self._path.stat().st_size
        terms = {
            "bytes": size,
            "filename": self._path.name,
            "mime_type": "application/octet-stream",
            "purpose": self._purpose,
        }
        created = read(_Upload, self._post(UPLOADS, terms))
        part_bytes = max(PART_BYTES, -(-size // MOST_PARTS))
        modified_ns = self._path.stat().st_mtime_ns
        state = UploadState(
            self._http.base, created.id, created.expires_at, size, modified_ns, self._purpose, part_bytes
        )
        self._keep(state)
        return state

    def _sent(self, state: UploadState) -> StoredFile:
        digest = hashlib.md5(usedforsecurity=False)
        with self._path.open("rb") as content:
            sent = 0
            for _ in state.part_ids:
                sent += _digested(content, state.part_bytes, digest)
            self._on_bytes(sent)
            while piece := content.read(state.part_bytes):
                digest.update(piece)
                headers, body = _form("data", "part", piece)
                place = f"{_upload_place(state.upload_id)}/parts"
                part = read(_Made, self._http.json("POST", place, body=body, headers=headers))
                state = dataclasses.replace(state, part_ids=(*state.part_ids, part.id))
                self._keep(state)
                sent += len(piece)
                self._on_bytes(sent)
        asked = {"part_ids": list(state.part_ids), "md5": digest.hexdigest()}
        done = self._post(f"{_upload_place(state.upload_id)}/complete", asked, silence_seconds=_COMPLETE_SECONDS)
        made = read(_Made, done).file
        if made is None:
            raise UnreadableAnswer("the completed upload names no file")
        return made

    def _post(self, path: str, body: dict[str, Any], **arguments: Any) -> Any:
        headers = {"content-type": "application/json"}
        return self._http.json("POST", path, body=json.dumps(body).encode(), headers=headers, **arguments)

    def _earlier(self) -> UploadState | None:
        """Return the state that another process left; None if there is none, or if it does not fit the file."""
        if self._kept is None:
            return None
        try:
            with self._kept.open("rb") as opened:
                state = read(UploadState, parsed(opened.read(_MOST_STATE_BYTES)))
        except (FileNotFoundError, UnreadableAnswer):
            return None
        found = self._path.stat()
        fits = (state.gateway, state.bytes, state.modified_ns, state.purpose) == (
            self._http.base,
            found.st_size,
            found.st_mtime_ns,
            self._purpose,
        )
        whole = state.part_bytes > 0 and len(state.part_ids) <= -(-state.bytes // state.part_bytes)
        return state if fits and whole and state.expires_at > self._http.clock.time() else None

    def _keep(self, state: UploadState) -> None:
        """Write the state completely or not at all."""
        if self._kept is None:
            return
        beside = self._kept.with_name(f".{self._kept.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps(dataclasses.asdict(state)), encoding="utf-8")
            beside.replace(self._kept)
        finally:
            beside.unlink(missing_ok=True)

    def _forget(self) -> None:
        if self._kept is not None:
            self._kept.unlink(missing_ok=True)


def _digested(content: BinaryIO, size: int, digest: Any) -> int:
    piece = content.read(size)
    digest.update(piece)
    return len(piece)


def _upload_place(upload_id: str) -> str:
    return f"{UPLOADS}/{quote(upload_id, safe='')}"
