"""A file for results, which keeps what an earlier run has written until there is something to put in its place."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from console.errors import BAD_INPUT, fail


@contextmanager
def written(option: str, path: Path | None) -> Iterator[TextIO | None]:
    """The file that an option names, open for a block: that it can be written is known before anything is done.

    It holds what it held until `begin_anew`.
    """
    if path is None:
        yield None
        return
    try:
        opened = path.open("a", encoding="utf-8")
    except OSError as error:
        raise fail(f"{option} {path}: {error.strerror}", BAD_INPUT) from None
    with opened:
        yield opened


def begin_anew(out: TextIO | None) -> None:
    """Take out what an earlier run has written. A pipe or a terminal holds nothing."""
    if out is not None and _is_file(out):
        out.truncate(0)


def without_lines(out: TextIO, numbers: Container[int]) -> bool:
    """Take these lines, counted from 0, out of a file of `written`. False where it is none: what a pipe had is gone.

    The file is rewritten in place, a line at a time, so its size is no matter.
    """
    if out is sys.stdout or not _is_file(out):
        return False
    out.flush()
    with Path(out.name).open("rb") as lines, Path(out.name).open("r+b") as kept:
        for number, line in enumerate(lines):
            if number not in numbers:
                kept.write(line)  # never beyond what is read already
        kept.truncate()
    return True


def _is_file(out: TextIO) -> bool:
    return stat.S_ISREG(os.fstat(out.fileno()).st_mode)
