"""Batches, as the gateway shows them. Source: OpenAI's API reference, "The batch object"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
