"""Opens the storage that the settings name."""

from __future__ import annotations

from pathlib import Path

from gateway.blobs.base import Blobs, BlobsAway
from gateway.blobs.folder import FolderBlobs
from gateway.blobs.settings import FilesSettings
from gateway.store.dialects import sqlite_file

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
