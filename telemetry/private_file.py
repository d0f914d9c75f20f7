"""Files with private keys: the access rule, replacement in one step, and one writer at a time."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

_ROOT = 0
_PRIVATE, _PUBLIC = 0o600, 0o644
_UNFINISHED = ".unfinished"
"""The suffix of a file that its writer has not renamed into place yet."""


class AccessProblem(NamedTuple):
    """The reason to refuse a file, and the fix."""

    problem: str
    fix: str


class Replacement(NamedTuple):
    """The new content of a file."""

    path: Path
    content: bytes
    private: bool = True
    """True if only the file's owner may read it."""


class PrivateFileRefused(Exception):  # noqa: N818 - named after the refusal
    """A file with secrets is open to other users, or belongs to one of them."""

    def __init__(self, found: AccessProblem) -> None:
        super().__init__(f"{found.problem}; {found.fix}")
        self.problem, self.fix = found


def read_private(path: Path, most_bytes: int, *, by_root: bool = False) -> bytes:
    """Return the content of a file with secrets. A file of more than `most_bytes` is cut after one byte more.

    A file with an `access_problem` is refused. Raises PrivateFileRefused and OSError.
    """
    with path.open("rb") as file:
        problem = access_problem(os.fstat(file.fileno()), path, by_root=by_root)
        if problem is not None:
            raise PrivateFileRefused(problem)
        return file.read(most_bytes + 1)


def access_problem(status: os.stat_result, path: Path, *, by_root: bool = False) -> AccessProblem | None:
    """Return the reason to refuse the file with this status; None if the file is fine.

    The owner must be this process's user or root: another owner could put other keys into the file at any time. With
    `by_root`, root may act on another user's file, for example to rotate a service user's keys. Only the owner may use
    the file, but its group may read a file that root owns. Kubernetes mounts Secrets in this way for pods that do not
    run as root. libpq has the same rules for private keys (PostgreSQL's documentation, section 34.19.1).
    """
    user = os.geteuid()
    if status.st_uid not in (_ROOT, user) and not (by_root and user == _ROOT):
        problem = f"it belongs to user {status.st_uid}, and this process runs as user {user}"
        return AccessProblem(problem, f"run `chown {user} {path}`, or run the process as the file's owner")
    if is_open_to_others(status.st_mode, status.st_uid):
        return AccessProblem("it is open to other users of this machine", f"run `chmod 600 {path}`")
    return None


def is_open_to_others(mode: int, owner: int) -> bool:
    """True if the mode lets users besides the owner use the file. The group may read a file that root owns."""
    allowed = stat.S_IRGRP if owner == _ROOT else 0
    return bool(mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed)


def replace_files(*replacements: Replacement) -> None:
    """Replace the files, in this order. A reader sees the old or the new content of each file. Raises OSError.

    The first file is replaced after all new contents are on the disk, so a full disk leaves every file as it was. A
    crash between two files leaves the later ones as they were. An existing file keeps its owner, group and mode.
    """
    with ExitStack() as unfinished:
        places = []
        for replacement in replacements:
            target = replacement.path.resolve()
            written = _write_beside(target, replacement)
            unfinished.callback(written.unlink, missing_ok=True)
            places.append((written, target))
        for written, target in places:
            written.replace(target)


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Hold the directory's lock during the block, and remove files that a crash left unfinished. Raises OSError.

    The directory is locked, not the file, because a write replaces the file. The block's changes are on the disk when
    the block ends.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for left in directory.glob(f".*{_UNFINISHED}"):
            left.unlink(missing_ok=True)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_beside(target: Path, replacement: Replacement) -> Path:
    """Write the content into a new file beside the target, and return its path. Its mode is 0600 while it is written.

    At the end the new file takes the target's owner, group and mode: a service's user must still be able to read keys
    that root has rotated. A private file that others could use gets mode 0600 instead.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=_UNFINISHED, dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(replacement.content)
            mode = _PRIVATE if replacement.private else _PUBLIC
            if target.exists():
                before, now = target.stat(), os.fstat(descriptor)
                if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                if not (replacement.private and is_open_to_others(before.st_mode, before.st_uid)):
                    mode = stat.S_IMODE(before.st_mode)
            os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)
