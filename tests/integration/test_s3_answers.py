"""Answers of a hostile storage: each one gives bytes or the declared error, to a worker and to the gateway."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import parse_headers
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.blobs import s3
from gateway.blobs.base import BlobError, BlobMissing, BlobsAway
from gateway.blobs.s3 import S3Blobs
from tests.drawn import drawn
from workers.enrichment.evidence import Unreadable
from workers.enrichment.fetching.s3 import S3Objects
from workers.enrichment.settings import ObjectFolder, PayloadSettings

pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
"""botocore leaves the connection of an answer that it cannot read to the garbage collector, which warns."""

STATUSES = (200, 204, 206, 301, 302, 304, 307, 400, 403, 404, 416, 500, 503, 999)
CODES = ("NoSuchKey", "AccessDenied", "AuthorizationHeaderMalformed", "PermanentRedirect", "InvalidRange", "SlowDown")
HEADERS = (
    "Location: /elsewhere",
    "Last-Modified: soon",
    "x-amz-bucket-region: eu-west-1",
    "x-amz-bucket-region: no/region",
    "x-amz-mp-parts-count: many",
    "Transfer-Encoding: chunked",
    "Content-Encoding: gzip",
    "Content-Length: 1000",
    "Content-Type: application/xml",
    'ETag: "a"',
)
DOCUMENTS = (
    "<Error><Code>{0}</Code><Region>{0}</Region></Error>",
    "<Error><Code><a>{0}</a></Code><Code/></Error>",
    "<InitiateMultipartUploadResult><UploadId>{0}</UploadId></InitiateMultipartUploadResult>",
    "<InitiateMultipartUploadResult/>",
    "<ListMultipartUploadsResult><Upload/><Upload><Key>any</Key></Upload></ListMultipartUploadsResult>",
    "<CompleteMultipartUploadResult><ETag>{0}",
    "{0}",
)

bodies = st.builds(
    lambda document, text: document.format(text).encode("utf-8", "replace"),
    st.sampled_from(DOCUMENTS),
    st.sampled_from(CODES) | st.text(max_size=30),
)
heads = st.lists(st.sampled_from(HEADERS), max_size=4, unique=True)


def written(status: int, headers: list[str], body: bytes) -> bytes:
    """An answer whose length is the body's, unless a header says otherwise."""
    if not any(header.startswith(("Content-Length", "Transfer-Encoding")) for header in headers):
        headers = [*headers, f"Content-Length: {len(body)}"]
    head = "\r\n".join([f"HTTP/1.1 {status} Said", "Connection: close", *headers])
    return head.encode() + b"\r\n\r\n" + body


answers = st.builds(written, st.sampled_from(STATUSES), heads, bodies | st.binary(max_size=60)) | st.binary(max_size=60)


class Storage(socketserver.ThreadingTCPServer):
    """A server that answers every request with the same bytes, and closes the connection."""

    daemon_threads = True
    said = b""
    asked = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(socketserver.StreamRequestHandler):
    server: Storage

    def handle(self) -> None:
        with suppress(ConnectionError):
            self.rfile.readline()
            headers = parse_headers(self.rfile)
            if "Expect" not in headers:  # with Expect, the client sends its body only after an answer
                self.rfile.read(int(headers.get("Content-Length", 0)))
            self.server.asked += 1
            self.wfile.write(self.server.said)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Storage]:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    # The client retries without pauses.
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setattr(s3, "PART_BYTES", 4)
    with Storage(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def blobs(storage: Storage) -> S3Blobs:
    return S3Blobs("fleet", "", storage.endpoint)


@pytest.fixture
def objects(storage: Storage) -> Iterator[S3Objects]:
    reader = S3Objects(PayloadSettings(s3=(ObjectFolder("fleet", ""),), s3_endpoint=storage.endpoint))
    yield reader
    reader.close()


def put(blobs: S3Blobs, content: bytes) -> None:
    writer = blobs.create("any")
    try:
        writer.write(content)
        writer.commit()
    finally:
        writer.abort()


CALLS: list[Callable[[S3Blobs], object]] = [
    lambda blobs: b"".join(blobs.read("any")),
    lambda blobs: put(blobs, b"abc"),
    lambda blobs: put(blobs, b"abcdefghi"),
    lambda blobs: blobs.delete("any"),
]


@settings(max_examples=drawn(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=answers)
def test_a_workers_read_gives_bytes_or_unreadable_for_any_answer(
    storage: Storage, objects: S3Objects, said: bytes
) -> None:
    storage.said = said
    with suppress(Unreadable):
        assert isinstance(asyncio.run(objects.read("s3://fleet/any", "acme", 50)), bytes)


@settings(max_examples=drawn(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=answers)
def test_the_gateways_files_raise_only_the_declared_errors_for_any_answer(
    storage: Storage, blobs: S3Blobs, said: bytes
) -> None:
    storage.said = said
    read, *changes = CALLS
    with suppress(BlobMissing, BlobsAway):
        read(blobs)
    for change in changes:
        with suppress(BlobsAway):
            change(blobs)


@pytest.mark.parametrize("call", CALLS, ids=["read", "put", "multipart", "delete"])
def test_a_storage_that_redirects_for_ever_is_away(
    storage: Storage, blobs: S3Blobs, call: Callable[[S3Blobs], object]
) -> None:
    storage.said = written(307, ["Location: /elsewhere"], b"")

    with pytest.raises(BlobsAway, match=r"refuses a request \(307\)"):
        call(blobs)

    assert storage.asked == 2  # one request asked for the object, and one for the bucket's region


@pytest.mark.parametrize("change", CALLS[1:], ids=["put", "multipart", "delete"])
def test_a_change_answered_with_a_code_of_reads_is_refused(
    storage: Storage, blobs: S3Blobs, change: Callable[[S3Blobs], object]
) -> None:
    for code in ("NoSuchKey", "InvalidRange"):
        storage.said = written(404, [], f"<Error><Code>{code}</Code></Error>".encode())
        with pytest.raises(BlobError, match=code):
            change(blobs)


def test_a_codes_noise_never_reaches_the_error(storage: Storage, blobs: S3Blobs) -> None:
    storage.said = written(400, [], b"<Error><Code>secret value\n2</Code></Error>")

    with pytest.raises(BlobsAway, match=r"refuses a request \(unknown\)"):
        b"".join(blobs.read("any"))
