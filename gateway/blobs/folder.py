"""Blobs as files of one folder, for one machine or a shared file system.

A write goes to a part file, which is renamed when its bytes are on the disk. So a reader sees a whole blob or none.
Only the gateway's user may read the folder. `open_blobs` opens the storage that the settings name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gateway.blobs.base import PIECE_BYTES, BlobMissing, Blobs, BlobsAway, checked_name
from gateway.blobs.settings import FilesSettings
from gateway.store.dialects import sqlite_file
from telemetry.atomic_file import PART, Unfinished

_FOLDER_MODE, _FILE_MODE = 0o700, 0o600


class FolderBlobs:
    """Blobs in a folder, which is made if it is missing. Raises BlobsAway."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise _away(error) from None

    def create(self, name: str) -> FolderWriter:
        """Begin a blob. Raises BlobsAway."""
        return FolderWriter(self._folder / checked_name(name))

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Return the pieces of a range."""
        left = length
        try:
            with (self._folder / checked_name(name)).open("rb") as file:
                file.seek(start)
                while left != 0 and (piece := file.read(PIECE_BYTES if left is None else min(left, PIECE_BYTES))):
                    left = None if left is None else left - len(piece)
                    yield piece
        except FileNotFoundError:
            raise BlobMissing(f"the folder of files has no {name}") from None
        except OSError as error:
            raise _away(error) from None

    def delete(self, name: str) -> None:
        """Delete the blob and its part files. Raises BlobsAway."""
        try:
            for path in (self._folder / checked_name(name), *self._folder.glob(f".{name}.*{PART}")):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _away(error) from None


class FolderWriter:
    """Writes a part file into the folder of the finished blob."""

    def __init__(self, place: Path) -> None:
        self._place = place
        try:
            self._new = Unfinished(place, _FILE_MODE)
        except OSError as error:
            raise _away(error) from None

    def write(self, data: bytes) -> None:
        """Append bytes. Raises BlobsAway."""
        try:
            self._new.file.write(data)
        except OSError as error:
            raise _away(error) from None

    def commit(self) -> None:
        """Write the bytes to the disk, then rename the part file, then write the folder to the disk."""
        try:
            self._new.finish()
            self._new.place()
            _sync_folder(self._place.parent)
        except OSError as error:
            raise _away(error) from None

    def abort(self) -> None:
        """Remove the part file."""
        with suppress(OSError):  # the part file may stay, because the blob's `delete` removes part files too
            self._new.discard()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable: without it, the name may be gone after a power failure (fsync(2))."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _away(error: OSError) -> BlobsAway:
    return BlobsAway(f"the folder of files cannot be used ({error.strerror}); check POSTBACK_FILES__PLACE and the disk")


_FOLDER = "postback-files"


def open_blobs(settings: FilesSettings, store_url: str) -> Blobs:
    """Return the storage of files. Raises BlobsAway."""
    folder, place = folder_of(settings, store_url), settings.place
    if folder is not None or place is None:
        return FolderBlobs(folder or Path(_FOLDER))
    try:
        from gateway.blobs.s3 import S3Blobs
    except ImportError:
        raise BlobsAway("POSTBACK_FILES__PLACE names a bucket, and boto3 is missing; install postback[s3]") from None
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    return S3Blobs(bucket, prefix, settings.s3_endpoint)


def folder_of(settings: FilesSettings, store_url: str) -> Path | None:
    """Return the folder of the files; None if they are in a bucket."""
    if settings.place is not None:
        return None if settings.place.startswith("s3://") else Path(settings.place)
    database = sqlite_file(store_url)
    return Path(_FOLDER) if database is None else database.parent / _FOLDER
