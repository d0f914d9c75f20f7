"""Blobs in a bucket of S3-compatible storage.

Source: Amazon S3 API reference, "CreateMultipartUpload", "UploadPart", "GetObject"; boto3's client. Credentials come
from boto3's own chain: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, a profile, or the machine's role.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from gateway.blobs.base import PIECE_BYTES, BlobMissing, BlobsAway, checked_name
from workers.system.s3 import refusal, s3_client

PART_BYTES = 8 * 1024 * 1024
"""The size of an upload's parts. S3 refuses parts below 5 MiB, except the last part."""
ANSWER_SECONDS = 5
"""The longest wait for a connection, and for each part of an answer. A call is tried twice at most."""
_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_BEYOND = frozenset({"InvalidRange", "416"})


class S3Blobs:
    """Blobs under a prefix of a bucket, which exists already."""

    def __init__(self, bucket: str, prefix: str, endpoint: str | None = None) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._client = s3_client(
            endpoint,
            connect_timeout=ANSWER_SECONDS,
            read_timeout=ANSWER_SECONDS,
            retries={"mode": "standard", "max_attempts": 2},
            s3={"addressing_style": "auto"},
            request_checksum_calculation="when_required",
        )

    def create(self, name: str) -> S3Writer:
        """Begin a blob. Nothing is sent to the storage until the first part is full."""
        return S3Writer(self._client, {"Bucket": self._bucket, "Key": self._key(name)})

    def read(self, name: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Return the pieces of a range."""
        if length == 0:
            return
        key, end = self._key(name), "" if length is None else start + length - 1
        try:
            with _mapped(is_read=True):
                answer = self._client.get_object(Bucket=self._bucket, Key=key, Range=f"bytes={start}-{end}")
        except _Beyond:
            return
        with _mapped():
            yield from answer["Body"].iter_chunks(PIECE_BYTES)

    def delete(self, name: str) -> None:
        """Delete the blob, and abort its unfinished uploads. Raises BlobsAway."""
        key = self._key(name)
        with _mapped():
            self._client.delete_object(Bucket=self._bucket, Key=key)
            found = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=key)
            for upload in found.get("Uploads", ()):
                if upload["Key"] == key:
                    self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload["UploadId"])

    def _key(self, name: str) -> str:
        return f"{self._prefix}{checked_name(name)}"


class S3Writer:
    """Collects bytes into parts. A blob of one part is sent by one `PutObject`; a larger blob is a multipart upload."""

    def __init__(self, client: Any, place: dict[str, str]) -> None:
        self._client = client
        self._place = place
        self._buffer = bytearray()
        self._upload: str | None = None
        self._parts: list[dict[str, Any]] = []

    def write(self, data: bytes) -> None:
        """Append bytes; send a part when one is full. Raises BlobsAway."""
        self._buffer += data
        while len(self._buffer) >= PART_BYTES:
            self._send(bytes(self._buffer[:PART_BYTES]))
            del self._buffer[:PART_BYTES]

    def commit(self) -> None:
        """Send the rest and complete the upload. Raises BlobsAway."""
        if self._upload is None:
            with _mapped():
                self._client.put_object(**self._place, Body=bytes(self._buffer))
            return
        if self._buffer:
            self._send(bytes(self._buffer))
        with _mapped():
            self._client.complete_multipart_upload(
                **self._place, UploadId=self._upload, MultipartUpload={"Parts": self._parts}
            )
        self._upload = None

    def abort(self) -> None:
        """Abort the upload."""
        if self._upload is not None:
            try:
                with _mapped():
                    self._client.abort_multipart_upload(**self._place, UploadId=self._upload)
            except BlobsAway:
                return  # the store's `delete` aborts a leftover upload later
            self._upload = None

    def _send(self, part: bytes) -> None:
        with _mapped():
            if self._upload is None:
                self._upload = self._client.create_multipart_upload(**self._place)["UploadId"]
            number = len(self._parts) + 1
            sent = self._client.upload_part(**self._place, UploadId=self._upload, PartNumber=number, Body=part)
            self._parts.append({"ETag": sent["ETag"], "PartNumber": number})


class _Beyond(Exception):  # noqa: N818 - it names what happened
    """A range begins at or past the blob's end."""


@contextmanager
def _mapped(*, is_read: bool = False) -> Iterator[None]:
    """Raise boto3's errors as BlobsAway; for a read, also as BlobMissing or _Beyond. The error's text names no key."""
    try:
        yield
    except ClientError as error:
        _, code = refusal(error)
        if is_read and code in _MISSING:
            raise BlobMissing("the bucket of files has no such object") from None
        if is_read and code in _BEYOND:
            raise _Beyond from None
        raise BlobsAway(f"the bucket of files refuses a request ({code}); check POSTBACK_FILES__PLACE") from None
    except BotoCoreError as error:
        raise BlobsAway(f"the bucket of files does not answer ({type(error).__name__})") from None
    except Exception as error:
        raise BlobsAway(f"the bucket of files gives an answer that is not S3's ({type(error).__name__})") from None
