"""Batches over HTTPS: upload a file of requests, and wait for its results.

Source: OpenAI's API reference, "The batch object".
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from postback_client.clock import TimeLimit
from postback_client.errors import BatchStillRunning, InvalidRequest, PostbackError
from postback_client.files import Files, OnBytes, ignore
from postback_client.http_session import HttpSession
from postback_client.shapes import parsed, read

BATCHES = "/v1/batches"
_FIRST_POLL_SECONDS, _POLL_SECONDS = 0.25, 5.0
_MOST_LINE_BYTES = 2 * 1024 * 1024

_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True)
class LineCounts:
    """The number of a batch's lines, and of those that were completed or have failed."""

    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch: a file of requests that are answered within 24 hours."""

    id: str
    status: str
    """`validating`, `in_progress`, `finalizing`, `cancelling`, or a final state (see `ended`)."""
    endpoint: str
    """The URL of all lines, such as `/v1/chat/completions`."""
    input_file_id: str
    created_at: int
    """Unix seconds."""
    output_file_id: str | None = None
    """The file with the results of the lines that succeeded; None if there is none."""
    error_file_id: str | None = None
    """The file with the errors of the lines that did not succeed; None if there is none."""
    request_counts: LineCounts = field(default_factory=LineCounts)
    metadata: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The whole JSON object of the batch, with its times and the `errors` of invalid lines."""

    @property
    def ended(self) -> bool:
        """True if the batch is completed, failed, expired or cancelled."""
        return self.status in _ENDED


OnBatch = Callable[[Batch], None]
"""Called with the batch each time its state has been read."""


class Batches:
    """A tenant's batches.

    All methods may raise PostbackError; those that read or write a local file may also raise OSError.
    """

    def __init__(self, http: HttpSession, files: Files) -> None:
        self._http = http
        self._files = files

    def create(
        self,
        path: str | Path,
        *,
        endpoint: str | None = None,
        metadata: Mapping[str, str] | None = None,
        state: str | Path | None = None,
        on_bytes: OnBytes = ignore,
    ) -> Batch:
        """Upload a file of OpenAI Batch lines, and begin a batch of it.

        `endpoint` is the URL of all lines; by default that of the first line. `state` is the argument of
        `Files.upload`.
        """
        url = endpoint if endpoint is not None else _first_url(Path(path))
        file = self._files.upload(path, state=state, on_bytes=on_bytes)
        return self.begin(file.id, endpoint=url, metadata=metadata)

    def begin(self, file_id: str, *, endpoint: str, metadata: Mapping[str, str] | None = None) -> Batch:
        """Begin a batch of an uploaded file. Even if this call has to send its request again, only one batch begins."""
        terms = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h", "metadata": metadata}
        body = json.dumps({name: value for name, value in terms.items() if value is not None}, default=dict)
        headers = {"content-type": "application/json", "idempotency-key": uuid.uuid4().hex}
        return read(Batch, self._http.json("POST", BATCHES, body=body.encode(), headers=headers))

    def retrieve(self, batch_id: str) -> Batch:
        """Return a batch as it is now. Raises NotFound."""
        return read(Batch, self._http.json("GET", f"{BATCHES}/{_id(batch_id)}"))

    def list(self) -> Iterator[Batch]:
        """Iterate over all batches, the newest first."""
        return self._http.listed(BATCHES, Batch)

    def cancel(self, batch_id: str) -> Batch:
        """Ask for a batch's cancellation, and return the batch. Raises Conflict if the batch has ended."""
        return read(Batch, self._http.json("POST", f"{BATCHES}/{_id(batch_id)}/cancel"))

    def wait(self, batch_id: str, timeout: float | None = None, *, on_batch: OnBatch = ignore) -> Batch:
        """Wait until the batch has ended, and return it. Raises BatchStillRunning after `timeout` seconds."""
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


def _first_url(path: Path) -> str:
    """Return the `url` of the file's first line. Raises InvalidRequest if the line has no `url`."""
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
