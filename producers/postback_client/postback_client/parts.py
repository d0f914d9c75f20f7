"""Uploads files in parts, so that an upload can continue after a lost connection, or in another process.

Source: OpenAI's API reference, "Uploads".
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from postback_client.batch import StoredFile
from postback_client.errors import Conflict, InvalidRequest, NotFound, UnreadableAnswer
from postback_client.http_session import HttpSession
from postback_client.shapes import parsed, read

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
class _Created:
    id: str
    expires_at: int


@dataclass(frozen=True, slots=True)
class _Named:
    id: str


@dataclass(frozen=True, slots=True)
class _Completed:
    file: StoredFile


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
        created = read(_Created, self._post(UPLOADS, terms))
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
                part = read(_Named, self._part(state.upload_id, piece))
                state = dataclasses.replace(state, part_ids=(*state.part_ids, part.id))
                self._keep(state)
                sent += len(piece)
                self._on_bytes(sent)
        asked = {"part_ids": list(state.part_ids), "md5": digest.hexdigest()}
        done = self._post(f"{_place(state.upload_id)}/complete", asked, silence_seconds=_COMPLETE_SECONDS)
        return read(_Completed, done).file

    def _part(self, upload_id: str, piece: bytes) -> Any:
        boundary = secrets.token_hex(16)
        head = f'--{boundary}\r\ncontent-disposition: form-data; name="data"; filename="part"\r\n\r\n'
        body = b"".join((head.encode(), piece, f"\r\n--{boundary}--\r\n".encode()))
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        return self._http.json("POST", f"{_place(upload_id)}/parts", body=body, headers=headers)

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


def _place(upload_id: str) -> str:
    return f"{UPLOADS}/{quote(upload_id, safe='')}"
