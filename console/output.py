"""A file for results, which keeps what an earlier run has written until there is something to put in its place."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
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
    if out is not None and stat.S_ISREG(os.fstat(out.fileno()).st_mode):
        out.truncate(0)
