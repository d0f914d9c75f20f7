"""The keyring's file on the disk: checked for access, read whole, replaced in one step, by one writer at a time.

Every error is a KeyringError with a text that names the path or the tenant, and the fix.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from telemetry.private_file import PrivateFileRefused, Replacement, only_writer, read_private, replace_files
from workers.delivery.keyring.content import (
    FORMAT,
    ImportedSecret,
    KeyringData,
    Master,
    RetiringVersion,
    TenantVersions,
)

_LARGEST_BYTES = 64 * 1024 * 1024
"""Limit on the file's size. A hundred thousand rotated tenants take 10 MB."""
_MODELS = (KeyringData, TenantVersions, RetiringVersion, Master, ImportedSecret)
_FIELDS = frozenset(name for model in _MODELS for name in model.model_fields)


class KeyringError(Exception):
    """The keyring cannot be used."""


class KeyringMissing(KeyringError):  # noqa: N818 - the names tell events
    """There is no keyring at this path."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"there is no keyring at {path}: make one with `postback keys init`, or set POSTBACK_KEYRING")


class KeyringExists(KeyringError):  # noqa: N818
    """There is a keyring at this path already."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists and is left as it is: rotate its keys with `postback keys rotate`")


class KeyringUnreadable(KeyringError):  # noqa: N818
    """The file cannot serve as a keyring."""

    def __init__(self, path: Path, problem: str, fix: str) -> None:
        super().__init__(f"keyring {path}: {problem}; {fix}")


class KeyringRefused(KeyringError):  # noqa: N818
    """The change makes no sense for these keys; the text gives the reason."""


def read(path: Path, *, by_root: bool = False) -> KeyringData:
    """Return the file's data. Raises KeyringMissing, KeyringUnreadable.

    With `by_root`, root may use another user's file.
    """
    try:
        with _reading(path):
            content = read_private(path, _LARGEST_BYTES, by_root=by_root)
    except PrivateFileRefused as refused:
        raise KeyringUnreadable(path, refused.problem, refused.fix) from None
    if len(content) > _LARGEST_BYTES:
        raise KeyringUnreadable(path, "the file is larger than any keyring", "put the file back from a backup")
    try:
        return KeyringData.model_validate_json(content)
    except ValidationError as error:
        raise KeyringUnreadable(path, _problem_of(error), "put the file back from a backup") from None


def _problem_of(error: ValidationError) -> str:
    parts = error.errors(include_input=False)
    if any(part["loc"] == ("format",) for part in parts):
        return f"its `format` is not {FORMAT}, the only one that this version reads"
    return f"it is not a keyring: {', '.join(sorted({_place_of(part) for part in parts}))}"


def _place_of(part: ErrorDetails) -> str:
    """Return the place of a problem in the file.

    Only names of the format's fields are shown, because any other text may be a key.
    """
    if not part["loc"]:
        return part["msg"].removeprefix("Value error, ") if part["type"] == "value_error" else "the JSON"
    return ".".join(str(name) if isinstance(name, int) or name in _FIELDS else "…" for name in part["loc"])


def stamp_of(path: Path) -> tuple[int, ...]:
    """Return a value that changes with the file or its mode. Raises KeyringMissing, KeyringUnreadable."""
    with _reading(path):
        status = path.stat()
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size, status.st_dev


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise KeyringMissing(path) from None
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "let this user read it") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the lock of the keyring's directory during the block. Raises KeyringUnreadable."""
    directory = path.resolve().parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with only_writer(directory):
            yield
    except OSError as error:
        raise KeyringUnreadable(path, _reason(error), "choose a place that this user can write") from None


def write(path: Path, data: KeyringData) -> None:
    """Inside `writing`, replace the file in one step: neither a reader nor a crash ever meets half a file."""
    replace_files(Replacement(path, (data.model_dump_json(indent=1) + "\n").encode()))


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno is not None else "it cannot be used"
