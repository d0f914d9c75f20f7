"""Records of `batch_requests`: each names a file and a range of its lines, which become jobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from gateway.batches.lines import Line
from schemas.bounded import WireModel
from schemas.job import Tenant

MOST_LINES = 500
MOST_BYTES = 4 * 1024 * 1024
"""The maximum number of bytes of a range.

The limit is small, because one transaction writes a whole range, and several ranges are in memory at once.
"""

FileId = Annotated[str, StringConstraints(pattern=r"^file-[0-9a-f]{32}$")]
BatchId = Annotated[str, StringConstraints(pattern=r"^batch_[0-9a-f]{32}$")]


class InvalidRange(Exception):  # noqa: N818 - named after the record
    """A record of `batch_requests` that cannot be read."""


class LineRange(WireModel):
    """A record's value."""

    tenant: Tenant
    batch_id: BatchId
    file_id: FileId
    first: int = Field(ge=0, lt=1_000_000)
    """The range's first line, from 0."""
    lines: int = Field(ge=1, le=MOST_LINES)
    start: int = Field(ge=0)
    """The offset of the range's first byte in the file."""
    length: int = Field(ge=1, le=2 * MOST_BYTES)
    """The number of bytes in the range."""

    @property
    def key(self) -> bytes:
        """The record's key, which spreads the ranges of a batch over the partitions."""
        return f"{self.batch_id}.{self.first}".encode()


def job_id(batch_id: str, line: int) -> str:
    """Return the id of a line's job."""
    return f"{batch_id}.{line}"


def write_range(range_: LineRange) -> bytes:
    """Write a record's value."""
    return range_.model_dump_json().encode()


def read_range(value: bytes | None) -> LineRange:
    """Read a record's value. Raises InvalidRange."""
    try:
        return LineRange.model_validate_json(value or b"", strict=True)
    except ValidationError:
        raise InvalidRange("the record does not name a batch and a range of lines") from None


class LineCut(WireModel):
    """A range of lines within one file."""

    first: int
    lines: int
    start: int
    length: int


def cut(lines: Iterable[Line]) -> Iterator[LineCut]:
    """Yield ranges of adjacent lines. Each range has at most MOST_LINES lines and MOST_BYTES bytes."""
    first: Line | None = None
    last: Line | None = None
    for line in lines:
        if first is not None and last is not None:
            full = line.number - first.number >= MOST_LINES or line.end - first.start > MOST_BYTES
            if full:
                yield _between(first, last)
                first = None
        first, last = first or line, line
    if first is not None and last is not None:
        yield _between(first, last)


def _between(first: Line, last: Line) -> LineCut:
    return LineCut(
        first=first.number, lines=last.number - first.number + 1, start=first.start, length=last.end - first.start
    )
