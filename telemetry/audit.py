"""The audit: one ECS line for each request of a tenant or an operator, apart from the log, without prompts and answers.

A line names the credential, the tenant, the action, its objects and its outcome. The file is opened again after a
rename, for example by `logrotate`. Lines are written whole, so lines of several processes never mix. On an event loop,
the lines of one turn are written together once the turn's callbacks are done.
Source: Elastic Common Schema 9.4, https://www.elastic.co/docs/reference/ecs
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from telemetry.clock import Clock
from telemetry.logs import ECS_VERSION, get_logger
from telemetry.throttle import LogThrottle

DATASET = "postback.audit"
_LOOK_SECONDS = 1.0
_SAY_SECONDS = 60.0

Type = Literal["access", "creation", "change", "deletion", "denied"]

log = get_logger()
_ENCODER = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One action of a person or a program."""

    action: str
    """The action's stable name, such as `createJobs`."""
    type: Type
    succeeded: bool
    user: str | None
    """The credential's public id; None if the request had no valid credential."""
    tenant: str | None
    objects: Sequence[str] = ()
    """Ids of the jobs, files, batches, keys or endpoints."""
    hashes: Sequence[str] = ()
    """SHA-256 of the prompts, in the order of `objects`."""
    status: int | None = None
    """The HTTP status."""
    request_id: str | None = None
    address: str | None = None
    """The client's IP address."""
    verdict: str | None = None
    """The strictest verdict of the input filter; None without rules."""
    rules: Sequence[str] = ()
    """Names of the filter's rules that match a job of the request."""
    reason: str | None = None
    """The code of the error with which the request was refused."""


class Audit:
    """Writes audit lines to a file, or to standard output. Thread-safe. Raises OSError if the file cannot be opened."""

    def __init__(self, path: Path | None, clock: Clock, service: str) -> None:
        self._path = path
        self._clock = clock
        self._service = service
        self._lock = threading.Lock()
        self._file = -1 if path is None else _opened(path)
        self._looked_at = float("-inf")
        self._throttle = LogThrottle(_SAY_SECONDS)
        self._lines: list[str] = []

    def record(self, event: AuditEvent) -> None:
        """Write one line. A line that cannot be written is reported in the log, and the request goes on."""
        line = _ENCODER.encode(self._fields(event))
        with self._lock:
            self._lines.append(line)
            is_first = len(self._lines) == 1
        if is_first:
            try:
                asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:  # no loop runs in this thread
                self.flush()

    def flush(self) -> None:
        """Write the lines that wait."""
        with self._lock:
            if not self._lines:
                return
            content, self._lines = "\n".join((*self._lines, "")).encode(), []
            try:
                self._reopen_if_renamed()
                os.write(sys.stdout.fileno() if self._path is None else self._file, content)
            except (OSError, ValueError) as error:
                if self._throttle.admit(self._clock.monotonic()) is not None:
                    log.error(
                        "An audit line cannot be written; the action goes on without it. Mend the file or its disk.",
                        action="audit-failed",
                        error=type(error).__name__,
                    )

    def close(self) -> None:
        """Write the lines that wait, and close the file."""
        self.flush()
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _reopen_if_renamed(self) -> None:
        now = self._clock.monotonic()
        if self._path is None or now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        ours = os.fstat(self._file)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino):
            new = _opened(self._path)
            os.close(self._file)
            self._file = new

    def _fields(self, event: AuditEvent) -> dict[str, object]:
        at = datetime.fromtimestamp(self._clock.time(), UTC).isoformat(timespec="microseconds")
        fields: dict[str, object] = {
            "@timestamp": at.replace("+00:00", "Z"),
            "ecs.version": ECS_VERSION,
            "service.name": self._service,
            "event.dataset": DATASET,
            "event.kind": "event",
            "event.category": ["api"],
            "event.type": [event.type],
            "event.action": event.action,
            "event.outcome": "success" if event.succeeded else "failure",
            "user.id": event.user,
            "organization.id": event.tenant,
            "source.ip": event.address,
            "error.code": event.reason,
            "http.request.id": event.request_id,
            "http.response.status_code": event.status,
            "postback.objects": list(event.objects) or None,
            "postback.prompt_sha256": list(event.hashes) or None,
            "postback.verdict": event.verdict,
            "postback.rules": list(event.rules) or None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def _opened(path: Path) -> int:
    """Open the file for appending, with mode 0600 if it is new. Raises OSError."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
