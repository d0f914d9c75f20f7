"""The lines of a batch's input, and records of `batch_requests`, each of which names a file and a range of its lines.

Lines are read with bounded memory, and counted from 0; a byte order mark belongs to no line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, NamedTuple

from pydantic import Field, StringConstraints, ValidationError

from schemas.bounded import WireModel
from schemas.job import MAX_JOB_BYTES, Tenant

_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line of a file."""

    number: int
    start: int
    """The offset of the line's first byte."""
    end: int
    """The offset after the line's break, or the file's end."""
    content: bytes | None
    """The line without white space at its ends; None for a line longer than a job may be."""


def lines_of(pieces: Iterable[bytes]) -> Iterator[Line]:
    """Yield the lines of a file that is read in pieces."""
    number = start = at = 0
    held: list[bytes] = []
    for piece in pieces:
        *whole, rest = piece.split(b"\n")
        for part in whole:
            at += len(part) + 1
            held.append(part)
            yield _line(number, start, at, held)
            number, start, held = number + 1, at, []
        at += len(rest)
        if rest and at - start <= MAX_JOB_BYTES + len(_MARK) + 1:
            held.append(rest)
        elif rest:
            held = []  # the line is too long already, as `_line` sees from the line's start and end
    if at > start:
        yield _line(number, start, at, held)


def _line(number: int, start: int, end: int, parts: list[bytes]) -> Line:
    if end - start > MAX_JOB_BYTES + len(_MARK) + 1:
        return Line(number, start, end, None)
    content = b"".join(parts)
    if number == 0 and content.startswith(_MARK):
        start, content = start + len(_MARK), content[len(_MARK) :]
    content = content.strip()
    return Line(number, start, end, content if len(content) <= MAX_JOB_BYTES else None)


MOST_LINES = 500
MOST_BYTES = 4 * 1024 * 1024
"""The maximum number of bytes of a range.

The limit is small, because one transaction writes a whole range, and several ranges are in memory at once.
"""

LONGEST_REASON = 300
"""The maximum number of characters of the reason why a line is skipped."""

FileId = Annotated[str, StringConstraints(pattern=r"^file-[0-9a-f]{32}$")]
BatchId = Annotated[str, StringConstraints(pattern=r"^batch_[0-9a-f]{32}$")]


class InvalidRange(Exception):  # noqa: N818 - named after the record
    """A record of `batch_requests` that cannot be read."""


class SkippedLine(WireModel):
    """A line that is no job, in a batch that runs its other lines."""

    line: int = Field(ge=0, lt=1_000_000)
    code: str = Field(max_length=64)
    message: str = Field(max_length=LONGEST_REASON)


class LineCut(WireModel):
    """A range of lines within one file."""

    first: int = Field(ge=0, lt=1_000_000)
    """The range's first line, from 0."""
    lines: int = Field(ge=1, le=MOST_LINES)
    start: int = Field(ge=0)
    """The offset of the range's first byte in the file."""
    length: int = Field(ge=1, le=2 * MOST_BYTES)
    """The number of bytes in the range."""
    skipped: Annotated[tuple[SkippedLine, ...], Field(max_length=MOST_LINES)] = ()
    """The lines of the range that do not run."""


class LineRange(LineCut):
    """A record's value."""

    tenant: Tenant
    batch_id: BatchId
    file_id: FileId

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


def cut(lines: Iterable[Line], skipped: Mapping[int, SkippedLine] = MappingProxyType({})) -> Iterator[LineCut]:
    """Yield ranges of adjacent lines. Each range has at most MOST_LINES lines and MOST_BYTES bytes.

    A line that is too long for a job is a range of its own, whose bytes are not read.
    """
    first: Line | None = None
    last: Line | None = None
    for line in lines:
        if first is not None and last is not None:
            full = line.number - first.number >= MOST_LINES or line.end - first.start > MOST_BYTES
            if full or line.content is None:
                yield _between(first, last, skipped)
                first = None
        first, last = first or line, line
        if line.content is None:
            yield _between(line, line._replace(end=line.start + 1), skipped)
            first = None
    if first is not None and last is not None:
        yield _between(first, last, skipped)


def _between(first: Line, last: Line, skipped: Mapping[int, SkippedLine]) -> LineCut:
    numbers = range(first.number, last.number + 1)
    return LineCut(
        first=first.number,
        lines=len(numbers),
        start=first.start,
        length=last.end - first.start,
        skipped=tuple(skipped[number] for number in numbers if number in skipped),
    )
