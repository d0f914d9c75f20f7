"""Output files of commands, which replace an earlier file once they are whole, and results in the order of the jobs."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper, UnsupportedOperation
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self, TextIO, TypeGuard

from cli.shared.errors import BAD_INPUT, FAILED, fail, refusing, say
from telemetry.atomic_file import PART, Unfinished

_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""The `errno` values of a disk's errors; an OSError with another value may come from a socket to Kafka."""
GO_ON = "free space there, and run the command again"


@contextmanager
def written(option: str, path: Path | None, go_on: str = GO_ON, code: int = FAILED) -> Iterator[TextIO | None]:
    """Yield a file for the lines of the path that an option names. The path gets them once the block has ended.

    A wrong path ends the command before it does anything else. If the block raises, or if the disk is full, the path
    keeps its content; lines that were written stay in a file beside it, which a message names. `go_on` is the fix for a
    full disk, and `code` its exit status. Pipes and terminals get the lines at once.
    """
    if path is None:
        yield None
        return
    with refusing(f"{option} {path}"):
        new = _unfinished(path)
        out = path.open("a", encoding="utf-8") if new is None else TextIOWrapper(new.file, encoding="utf-8")
    try:
        yield out
        out.flush()
        if new is not None:
            new.finish()
            new.place()
    except BaseException as error:
        with suppress(OSError):  # closing repeats the error, since the buffer still has the unwritten lines
            out.close()
        kept = _kept(path, new)
        if is_full(error):
            raise fail("; ".join([f"{option} {path}: {error.strerror}", *kept, go_on]), code) from None
        for line in kept:
            say(f"{option}: {line}")
        raise
    finally:
        with suppress(OSError):
            out.close()
        if new is not None:
            new.discard()


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """True if a disk did not take what was written: it is full or broken, or a quota or a limit is reached."""
    return isinstance(error, OSError) and error.errno in _WRITE_ERRORS


def check_place(option: str, path: Path | None) -> None:
    """End the command if no file can be written at the path that an option names. A file there stays as it is."""
    if path is not None:
        with refusing(f"{option} {path}"):
            new = _unfinished(path)
            if new is not None:
                new.discard()


def refuse_one_file(outputs: Mapping[str, Path | None], inputs: Mapping[str, str | Path | None] | None = None) -> None:
    """End the command if an output is the same file as an input or as another output, by any name.

    `inputs` and `outputs` are files by their options; the input `-` is standard input.
    """
    options = {_identity(file): option for option, file in (inputs or {}).items() if file is not None}
    options.pop(None, None)
    for option, path in outputs.items():
        identity = None if path is None else _identity(path)
        if identity is not None and (other := options.setdefault(identity, option)) != option:
            raise fail(f"{option} {path}: is also the file of {other}; name another file", BAD_INPUT)


def _identity(file: str | Path) -> object:
    """Return a value that two names of one file share; None for pipes and terminals, which nothing empties."""
    try:
        status = os.fstat(sys.stdin.fileno()) if file == "-" else Path(file).stat()
    except UnsupportedOperation:  # input in memory, as in tests
        return None
    except OSError:  # no such file yet
        return Path(file).resolve()
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _unfinished(path: Path) -> Unfinished | None:
    """Begin a file's new content; None for a pipe or a terminal. Raises OSError."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return Unfinished(path) if path.is_file() or not path.exists() else None


def _kept(path: Path, new: Unfinished | None) -> list[str]:
    """Keep the whole lines of an unfinished file beside it, and return text that says so; nothing without lines."""
    if new is None or not (lines := _whole_lines(new.path)):
        return []
    part = path.with_name(f"{path.name}{PART}")
    new.path.replace(part.resolve())
    was = f"{path} is as it was, and " if path.exists() else ""
    return [f"{was}{part} has the {lines} lines that were written"]


def _whole_lines(path: Path) -> int:
    """Cut the file after its last whole line, and return the number of its lines."""
    lines = whole = 0
    with path.open("r+b") as content:
        for line in content:
            if line.endswith(b"\n"):
                lines += 1
                whole += len(line)
        content.truncate(whole)
    return lines


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


def _is_file(out: TextIO | BinaryIO) -> bool:
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
