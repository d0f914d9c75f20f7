"""A temporary folder for a broker's data. If the folder's process was killed, the next start removes the folder."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "postback-broker-"
_OWNED = "owned"
"""A file that the folder's owner keeps locked. The kernel releases the lock when the owner ends in any way."""


class Scratch:
    """A temporary folder of this process. The constructor also removes the folders of killed processes."""

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir())
        for left in base.glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        # The file is locked before it is named `owned`, because another start removes folders whose `owned` is not
        # locked.
        taken = self.path / "taken"
        self._lock = os.open(taken, os.O_CREAT | os.O_RDONLY, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        taken.rename(self.path / _OWNED)

    def remove(self) -> None:
        """Remove the folder. Repeated calls are harmless."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _remove_if_left(folder: Path) -> None:
    try:
        lock = os.open(folder / _OWNED, os.O_RDONLY)
    except OSError:
        return  # the folder is being made or removed, or belongs to another user
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # the process that owns the folder is alive
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
