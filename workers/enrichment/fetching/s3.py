"""Reads objects of S3-compatible storage that jobs name as their payload.

Source: Amazon S3 API reference, "GetObject" and "Error responses"; boto3's client. The buckets and the endpoint are the
operator's, so the egress guard does not check them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, Final

from workers.enrichment.evidence import Unreadable
from workers.enrichment.settings import PayloadSettings
from workers.system.errors import ProcessError
from workers.system.s3_exchange import Exchange

THREADS: Final = 8
"""Number of objects that a worker reads at once."""
_PIECE_BYTES: Final = 64 * 1024
_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 10
_MISSING: Final = frozenset({"NoSuchKey", "NoSuchBucket", "404", "NotFound"})
_OF_THE_OBJECT: Final = frozenset({"AccessDenied", "InvalidObjectState", "403", "KeyTooLongError", "InvalidURI"})
"""Error codes for which a further try is useless, since the object or the rights to the object are at fault."""


class S3Objects:
    """Reads objects in threads, since boto3 blocks.

    A job that is cancelled, or whose time is over, frees its thread at once, however slowly the storage answers. Only
    a lookup of the storage's name and the opening of a connection cannot be ended. The latter takes at most five
    seconds for TCP, and five for TLS.
    """

    def __init__(self, settings: PayloadSettings) -> None:
        """Raises ProcessError if boto3 is missing or cannot use the settings of its environment."""
        self._folders = settings.s3
        self._client = _client(settings.s3_endpoint) if settings.s3 else None
        self._threads = ThreadPoolExecutor(THREADS, "s3")

    async def read(self, url: str, tenant: str, most_bytes: int) -> bytes:
        """Return the bytes of the object at `s3://BUCKET/KEY`. Raises Unreadable."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        self._check(bucket, key, tenant)
        exchange = Exchange()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._read, bucket, key, most_bytes, exchange)
        finally:
            exchange.end()

    def close(self) -> None:
        """End the idle threads now, and let each busy thread end after its read."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _check(self, bucket: str, key: str, tenant: str) -> None:
        """Raise Unreadable for an object that the operator's settings do not allow."""
        if not self._folders:
            raise Unreadable("no bucket is allowed here; send an https URL, or ask the operator to allow the bucket")
        if {".", ".."} & {*key.split("/")}:  # such a key may lead a client or a server to another folder
            raise Unreadable("its key has `.` or `..` between slashes; rename the object")
        if not any(folder.holds(bucket, key, tenant) for folder in self._folders):
            raise Unreadable("the operator does not allow this tenant to read there; ask for the right prefix")

    def _read(self, bucket: str, key: str, most_bytes: int, exchange: Exchange) -> bytes:
        found = bytearray()
        with exchange.in_this_thread(), closing(self._pieces(bucket, key)) as pieces:
            for piece in pieces:
                found += piece
                if len(found) > most_bytes:
                    raise Unreadable(f"it is larger than {most_bytes} bytes")
        return bytes(found)

    def _pieces(self, bucket: str, key: str) -> Generator[bytes]:
        with _mapped():
            answer = self._client.get_object(Bucket=bucket, Key=key)  # type: ignore[union-attr]  # `_check` came first
            with answer["Body"]:
                yield from answer["Body"].iter_chunks(_PIECE_BYTES)


def _client(endpoint: str | None) -> Any:
    """Return a client, which threads may share. Raises ProcessError."""
    try:
        from botocore.exceptions import BotoCoreError

        from workers.system.s3 import s3_client
    except ImportError:
        raise ProcessError("POSTBACK_PAYLOADS__S3 names a bucket, and boto3 is missing; install postback[s3]") from None
    try:
        return s3_client(
            endpoint,
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            retries={"total_max_attempts": 1},  # `PayloadFetcher` tries again, even after a broken body
            max_pool_connections=THREADS,
        )
    except (BotoCoreError, ValueError) as error:
        raise ProcessError(
            f"boto3 cannot use AWS_ENDPOINT_URL_S3 or another of its AWS_ variables ({type(error).__name__})"
        ) from None


@contextmanager
def _mapped() -> Iterator[None]:
    """Raise boto3's errors as Unreadable. The text names the kind of the error, but not the object's key."""
    from botocore.exceptions import BotoCoreError, ClientError

    from workers.system.s3 import refusal

    try:
        yield
    except ClientError as error:
        status, code = refusal(error)
        if code in _MISSING:
            raise Unreadable("its bucket has no such object") from None
        if code in _OF_THE_OBJECT:
            raise Unreadable(f"its bucket does not let the workers read it ({code})") from None
        raise Unreadable(f"its storage answered {status} ({code})", is_outage=True) from None
    except BotoCoreError as error:
        raise Unreadable(f"its storage does not answer ({type(error).__name__})", is_outage=True) from None
    except Exception as error:
        raise Unreadable(f"its storage's answer is not S3's ({type(error).__name__})", is_outage=True) from None
