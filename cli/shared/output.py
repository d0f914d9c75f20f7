"""Output files for results, and their lines in the order of the jobs.

The lines of an earlier run stay in a file until new lines can replace them.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from types import TracebackType
from typing import NamedTuple, Self, TextIO

from cli.shared.errors import BAD_INPUT, FAILED, fail

_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""The `errno` values of a disk's errors; an OSError with another value may come from a socket to Kafka."""


@contextmanager
def written(option: str, path: Path | None) -> Iterator[TextIO | None]:
    """Open the file that an option names, for the body of a `with`.

    A wrong path ends the command before it does anything else. The file keeps its content until `begin_anew`. A full
    disk ends the command with a line that names the file.
    """
    if path is None:
        yield None
        return
    try:
        opened = path.open("a", encoding="utf-8")
    except OSError as error:
        raise fail(f"{option} {path}: {error.strerror}", BAD_INPUT) from None
    try:
        yield opened
        opened.close()
    except OSError as error:
        if error.errno not in _WRITE_ERRORS:
            raise
        raise fail(f"{option} {path}: {error.strerror}", FAILED) from None
    finally:
        with suppress(OSError):  # closing repeats the error, since the buffer still has the unwritten lines
            opened.close()


def begin_anew(out: TextIO | None) -> None:
    """Remove the lines of an earlier run from a file. A pipe or a terminal is left alone."""
    if out is not None and _is_file(out):
        out.truncate(0)


def without_lines(out: TextIO, numbers: Container[int]) -> bool:
    """Remove lines by number, counted from 0, from a file that `written` opened. Return False for a pipe or a terminal.

    The file is rewritten in place, line by line, so memory use does not depend on its size.
    """
    if out is sys.stdout or not _is_file(out):
        return False
    out.flush()
    with Path(out.name).open("rb") as lines, Path(out.name).open("r+b") as kept:
        for number, line in enumerate(lines):
            if number not in numbers:
                kept.write(line)  # writing never overtakes reading, because no more lines are written than were read
        kept.truncate()
    return True


def _is_file(out: TextIO) -> bool:
    return stat.S_ISREG(os.fstat(out.fileno()).st_mode)


class _Place(NamedTuple):
    out: TextIO
    start: int
    length: int


class OrderedLines:
    """Keeps lines in a temporary file until all have arrived. Each job takes some 200 bytes of memory.

    If a job has several lines, only the last one is written.
    """

    def __init__(self, job_ids: Iterable[str]) -> None:
        self._job_ids = job_ids
        self._file = TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._end = 0
        self._places: dict[str, _Place] = {}

    def put(self, out: TextIO, line: str, job_id: str) -> None:
        """Store a job's line, which `write` later writes to `out`."""
        content = line.encode()
        with _told_of_disk():
            self._file.write(content)
        self._places[job_id] = _Place(out, self._end, len(content))
        self._end += len(content)

    def write(self) -> None:
        """Write the stored lines in the order of their jobs, and forget them."""
        with _told_of_disk():
            self._file.flush()
        for job_id in self._job_ids:
            if (place := self._places.pop(job_id, None)) is not None:
                self._file.seek(place.start)
                place.out.write(f"{self._file.read(place.length).decode()}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # closing fails if the disk is full, which was reported already
            self._file.close()


@contextmanager
def _told_of_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fail(f"--ordered: the temporary file in {gettempdir()}: {error.strerror}") from None
