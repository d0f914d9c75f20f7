"""The interface of storage: blobs have a name, are written once, and are read in ranges. All calls block: use a thread.

    BlobError
    ├── BlobMissing   no blob has this name
    └── BlobsAway     the storage does not answer, or is full; the call may be repeated

The texts of the errors name no key and no content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

PIECE_BYTES = 256 * 1024
"""The size of the pieces in which blobs are read."""

_NO_BLOB = "no-such-blob"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class BlobError(Exception):
    """A blob could not be read or written."""


class BlobMissing(BlobError):  # noqa: N818 - it names what happened
    """The storage has no blob with this name."""


class BlobsAway(BlobError):  # noqa: N818 - it names what happened
    """The storage of files does not answer, or is full."""


class BlobWriter(Protocol):
    """One blob that is being written. The blob can be read after `commit`."""

    def write(self, data: bytes) -> None:
        """Append bytes. Raises BlobsAway."""
        ...

    def commit(self) -> None:
        """Make the blob durable and readable under its name. Raises BlobsAway; the blob may then exist or not."""
        ...

    def abort(self) -> None:
        """Remove the bytes written so far. Does nothing after `commit`, and raises nothing."""
        ...


class Blobs(Protocol):
    """Storage of blobs. A blob's name is one of the gateway's ids: letters, digits, `-` and `_`. Thread-safe."""

    def create(self, name: str) -> BlobWriter:
        """Begin a blob. Raises BlobsAway."""
        ...

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Return the pieces of a range, which is cut at the blob's end.

        Reading the first piece may raise BlobMissing or BlobsAway.

        `start` and `length` are in bytes; without `length`, the range ends with the blob.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete the blob, if it exists, and the leftovers of interrupted writes under this name. Raises BlobsAway."""
        ...


def checked_name(name: str) -> str:
    """Return the name. Raises ValueError for a name that could be a path."""
    if not _NAME.fullmatch(name):
        raise ValueError("a blob's name is 1 to 64 letters, digits, `-` or `_`")
    return name


def has_answer(blobs: Blobs) -> None:
    """Read a blob that does not exist: the storage answers that it is missing. Raises BlobsAway."""
    with suppress(BlobMissing):
        next(blobs.read(_NO_BLOB), None)
