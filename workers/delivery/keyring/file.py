"""The keyring's file on the disk: checked for access, read whole, replaced in one step, by one writer at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from telemetry.private_file import PrivateFileRefused, Replacement, only_writer, read_private, replace_files
from workers.delivery.keyring.data import KeyringData
from workers.delivery.keyring.errors import KeyringMissing, KeyringUnreadable
from workers.delivery.keyring.keys import FleetKey, ImportedSecret, Master
from workers.delivery.keyring.versions import RetiringVersion, TenantVersions

_LARGEST_BYTES = 64 * 1024 * 1024
"""Limit on the file's size. A hundred thousand rotated tenants take 10 MB."""
_MODELS = (KeyringData, TenantVersions, RetiringVersion, FleetKey, Master, ImportedSecret)
_FIELDS = frozenset(name for model in _MODELS for name in model.model_fields)


def read(path: Path, *, by_root: bool = False) -> KeyringData:
    """Return the file's data. Raises KeyringMissing, KeyringUnreadable.

    With `by_root`, root may use another user's file.
    """
    try:
        content = read_private(path, _LARGEST_BYTES, by_root=by_root)
    except FileNotFoundError:
        raise KeyringMissing(path) from None
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "let this user read it") from None
    except PrivateFileRefused as refused:
        raise KeyringUnreadable(path, refused.problem, refused.fix) from None
    if len(content) > _LARGEST_BYTES:
        raise KeyringUnreadable(path, "the file is larger than any keyring", "put the file back from a backup")
    try:
        return KeyringData.model_validate_json(content)
    except ValidationError as error:
        problems = ", ".join(sorted({_problem_of(part) for part in error.errors(include_input=False)}))
        raise KeyringUnreadable(path, f"it is not a keyring: {problems}", "put the file back from a backup") from None


def _problem_of(part: ErrorDetails) -> str:
    """Return the place of a problem in the file.

    Only names of this format's fields are shown, because any other text may be a key.
    """
    if not part["loc"]:
        return part["msg"].removeprefix("Value error, ") if part["type"] == "value_error" else "the JSON"
    return ".".join(str(name) if isinstance(name, int) or name in _FIELDS else "…" for name in part["loc"])


def write(path: Path, data: KeyringData) -> None:
    """Replace the file in one step, so that neither a reader nor a crash ever meets half a file."""
    try:
        replace_files(Replacement(path, (data.model_dump_json(indent=1) + "\n").encode()))
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "choose a place that this user can write") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the lock of the keyring's directory during the block."""
    directory = path.resolve().parent
    with ExitStack() as lock:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock.enter_context(only_writer(directory))
        except OSError as error:
            raise KeyringUnreadable(path, _reason(error), "choose a place that this user can write") from None
        yield


def stamp_of(path: Path) -> tuple[int, ...]:
    """Return a value that changes with the file or its mode. Raises KeyringMissing, KeyringUnreadable."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise KeyringMissing(path) from None
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "let this user read it") from None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size, status.st_dev


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno is not None else "it cannot be used"
