"""The keyring's file on the disk: who may use it, read whole, replaced in one step, and one writer at a time."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from workers.delivery.keyring.data import KeyringData
from workers.delivery.keyring.errors import KeyringMissing, KeyringUnreadable

_ROOT = 0


def read(path: Path) -> KeyringData:
    """The file's data. Raises KeyringMissing, KeyringUnreadable."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except FileNotFoundError:
        raise KeyringMissing(path) from None
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "let this user read it") from None
    if is_open_to_others(status.st_mode, status.st_uid):
        raise KeyringUnreadable(path, "it is open to other users of this machine", f"run `chmod 600 {path}`")
    try:
        return KeyringData.model_validate_json(content)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, part["loc"])) or "the JSON" for part in error.errors()}))
        raise KeyringUnreadable(path, f"it is not a keyring: {fields}", "put the file back from a backup") from None


def is_open_to_others(mode: int, owner: int) -> bool:
    """Whether somebody else may use the file. Its owner may, and the group may read what root owns.

    The latter is how a Secret is mounted into a pod that does not run as root; PostgreSQL has the same rule for its
    keys (its documentation, section 18.9).
    """
    allowed = stat.S_IRGRP if owner == _ROOT else 0
    return bool(mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed)


def write(path: Path, data: KeyringData) -> None:
    """Replace the file in one step, so that no reader and no crash ever meets half of it."""
    target = path.resolve()
    try:
        # mkstemp makes the file with mode 0600.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            _keep_access(descriptor, target)
            with os.fdopen(descriptor, "w") as file:
                file.write(data.model_dump_json(indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "choose a place that this user can write") from None


def _keep_access(descriptor: int, target: Path) -> None:
    """Owner, group and mode of the file that is replaced: where root rotates keys, delivery must read them after."""
    if target.exists():
        before, now = target.stat(), os.fstat(descriptor)
        if (before.st_uid, before.st_gid) != (now.st_uid, now.st_gid):
            os.fchown(descriptor, before.st_uid, before.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the directory's lock over a read and a write. The file itself is replaced, so it cannot carry the lock."""
    directory = path.resolve().parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "choose a place that this user can write") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def stamp_of(path: Path) -> tuple[int, ...]:
    """What changes when the file or its mode does."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise KeyringMissing(path) from None
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "let this user read it") from None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size, status.st_dev


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno is not None else "it cannot be used"
