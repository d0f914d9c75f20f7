"""Puts lines of results into the order of their jobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryFile, gettempdir
from types import TracebackType
from typing import NamedTuple, Self, TextIO

from console.errors import fail


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
        with _told():
            self._file.write(content)
        self._places[job_id] = _Place(out, self._end, len(content))
        self._end += len(content)

    def write(self) -> None:
        """Write the stored lines in the order of their jobs, and forget them."""
        with _told():
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
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fail(f"--ordered: the temporary file in {gettempdir()}: {error.strerror}") from None
