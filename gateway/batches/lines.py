"""The lines of a file, read with bounded memory. Lines are counted from 0; a byte order mark belongs to no line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from schemas.job import MAX_JOB_BYTES

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
