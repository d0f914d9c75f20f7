"""A temporary folder for a broker's data, which the next start removes where its owner was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "postback-broker-"
_OWNED = "owned"
"""Locked for as long as its owner lives: the kernel lets go of a lock however a process ends."""


class Scratch:
    """A folder of this process. `remove` ends it; the folders of those that could not are removed on the way."""

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir())
        for left in base.glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        # Locked before it has its name, since another start removes what it finds under that name and not locked.
        taken = self.path / "taken"
        self._lock = os.open(taken, os.O_CREAT | os.O_RDONLY, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        taken.rename(self.path / _OWNED)

    def remove(self) -> None:
        """Remove the folder. May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _remove_if_left(folder: Path) -> None:
    try:
        lock = os.open(folder / _OWNED, os.O_RDONLY)
    except OSError:
        return  # it is being made, or removed, or another user's
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # its owner lives
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
