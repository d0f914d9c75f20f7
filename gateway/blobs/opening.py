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
    place = settings.place
    if place is None:
        return FolderBlobs(_beside(store_url))
    if not place.startswith("s3://"):
        return FolderBlobs(Path(place))
    try:
        from gateway.blobs.s3 import S3Blobs
    except ImportError:
        raise BlobsAway("POSTBACK_FILES__PLACE names a bucket, and boto3 is missing; install postback[s3]") from None
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    return S3Blobs(bucket, prefix, settings.s3_endpoint)


def _beside(store_url: str) -> Path:
    database = sqlite_file(store_url)
    return Path(_FOLDER) if database is None else database.parent / _FOLDER
