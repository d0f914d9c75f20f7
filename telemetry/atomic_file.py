"""Files that are replaced in one step; for files with private keys, also the access rule and one writer at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

_ROOT = 0
_PRIVATE, _PUBLIC = 0o600, 0o644
_UNFINISHED = ".unfinished"
"""The suffix of a private file that its writer has not renamed into place yet; `only_writer` removes such files."""
PART = ".part"
"""The suffix of any other file that is not whole yet."""


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
        files = []
        for replacement in replacements:
            new = Unfinished(replacement.path, _PRIVATE if replacement.private else _PUBLIC, _UNFINISHED)
            unfinished.callback(new.discard)
            new.file.write(replacement.content)
            new.finish()
            files.append(new)
        for new in files:
            new.place()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file for the new content of `path`, which takes the path's place at the end of the block.

    If the block raises, `path` stays as it was. Raises OSError.
    """
    new = Unfinished(path)
    try:
        yield new.file
        new.finish()
        new.place()
    finally:
        new.discard()


class Unfinished:
    """The new content of a file, in a file beside it: readers see the old content until `place`.

    An existing file's owner, group and mode stay: a service's user must still be able to read keys that root rotated.
    """

    def __init__(self, path: Path, mode: int | None = None, suffix: str = PART) -> None:
        """Create the file beside the target, or beside the target of a link. Raises OSError.

        `mode` is the mode of a target that does not exist yet; None leaves it to the umask. With 0600, a target that
        other users could use gets mode 0600 too.
        """
        self._target = path.resolve()
        self._before = self._target.stat() if self._target.exists() else None
        self._mode = mode
        if self._before is not None and not (
            mode == _PRIVATE and is_open_to_others(self._before.st_mode, self._before.st_uid)
        ):
            self._mode = stat.S_IMODE(self._before.st_mode)
        self._created_with = 0o666 if self._mode is None else self._mode & (stat.S_IRUSR | stat.S_IWUSR)
        self.path = self._target.with_name(f".{self._target.name}.{secrets.token_hex(4)}{suffix}")
        self.file: BinaryIO = open(self.path, "xb", opener=self._opened)  # noqa: SIM115 - closed by finish or discard

    def _opened(self, path: str, flags: int) -> int:
        return os.open(path, flags, self._created_with)

    def finish(self) -> None:
        """Write the content to the disk, and close the file. Raises OSError, also for a full disk."""
        descriptor = self.file.fileno()
        now = os.fstat(descriptor)
        if self._before is not None and (self._before.st_uid, self._before.st_gid) != (now.st_uid, now.st_gid):
            os.fchown(descriptor, self._before.st_uid, self._before.st_gid)
        if self._mode is not None:
            os.fchmod(descriptor, self._mode)
        self.file.flush()
        os.fsync(descriptor)
        self.file.close()

    def place(self) -> None:
        """Replace the target by the finished file. Raises OSError."""
        self.path.replace(self._target)

    def discard(self) -> None:
        """Remove the new content, unless it was placed."""
        with suppress(OSError):  # closing writes the buffer, which fails on a full disk
            self.file.close()
        self.path.unlink(missing_ok=True)


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
