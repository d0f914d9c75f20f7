"""A bucket of a real S3 server and of a hostile one: a worker and the gateway get bytes, or the declared error."""

from __future__ import annotations

import asyncio
import gc
import json
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import parse_headers
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.blobs import s3
from gateway.blobs.base import BlobError, BlobMissing, BlobsAway
from gateway.blobs.s3 import S3Blobs
from tests.drawn import drawn
from tests.integration.certificates import Authority
from tests.integration.raw_server import Script, saying, speaking
from tests.integration.test_job_payloads import loading
from tests.s3_server import ACCESS, SECRET, s3_server
from workers.enrichment.evidence import Unreadable
from workers.enrichment.fetching import attached
from workers.enrichment.fetching.s3 import THREADS, S3Objects
from workers.enrichment.settings import ObjectFolder, PayloadSettings
from workers.system.errors import ProcessError

pytestmark = [
    pytest.mark.timeout(1_200),  # the first test builds the S3 server, which takes minutes
    # botocore leaves the connection of an answer that it cannot read to the garbage collector, which warns.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"),
]

BUCKET = "uploads"
FOLDERS = f"s3://{BUCKET}/{{tenant}}/, s3://{BUCKET}/shared/"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "data", BUCKET) as endpoint:
        yield endpoint


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(attached, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in (("ACCESS_KEY_ID", ACCESS), ("SECRET_ACCESS_KEY", SECRET), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)


def put(endpoint: str, key: str, **fields: Any) -> str:
    """Put a document with these fields into the bucket; return its URL."""
    client = boto3.session.Session().client("s3", endpoint_url=endpoint)
    client.put_object(Bucket=BUCKET, Key=key, Body=json.dumps(fields).encode())
    client.close()
    return f"s3://{BUCKET}/{key}"


def reading_from(endpoint: str, **more: Any) -> dict[str, Any]:
    return {"s3": FOLDERS, "s3_endpoint": endpoint, **more}


async def test_a_tenants_own_object_and_a_shared_one_are_the_question(storage: str) -> None:
    question = "Why is the sky blue? " * 40_000
    own = put(storage, "acme/a file, 100 %.json", prompt=question)
    shared = put(storage, "shared/q.json", prompt="Who?")
    async with loading(**reading_from(storage)) as worker:
        first = await worker.answer(own, "acme", max_tokens=3)
        second = await worker.answer(shared, "umbrella")
    assert first.outcome == "succeeded"
    assert first.usage is not None and first.usage.prompt_tokens > 100_000
    assert second.text == "Who?"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://uploads/acme/none.json", "its bucket has no such object"),
        ("s3://uploads/umbrella/secret.json", "the operator does not allow this tenant to read there"),
        ("s3://uploads/acme2/secret.json", "the operator does not allow this tenant to read there"),
        ("s3://uploads/ACME/secret.json", "the operator does not allow this tenant to read there"),
        ("s3://other/acme/secret.json", "the operator does not allow this tenant to read there"),
        ("s3://uploads/acme/../umbrella/secret.json", "its key has `.` or `..` between slashes"),
        ("s3://uploads/acme/%2e%2e/umbrella/secret.json", "its bucket has no such object"),
        ("s3://uploads/acme/large.json", "it is larger than 2000 bytes"),
    ],
)
async def test_another_object_rejects_the_job(storage: str, url: str, reason: str) -> None:
    for key in ("umbrella/secret.json", "acme2/secret.json", "ACME/secret.json"):
        put(storage, key, prompt="secret")
    put(storage, "acme/large.json", prompt="a" * 2000)
    async with loading(**reading_from(storage, most_bytes=2000)) as worker:
        result = await worker.answer(url, "acme")
    assert result.outcome == "rejected"
    assert result.error is not None
    assert result.error.message.startswith(f"payload_url: the payload cannot be used: {reason}")


async def test_credentials_that_the_storage_does_not_know_fail_the_job(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(storage, "acme/q.json", prompt="a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    async with loading(**reading_from(storage)) as worker:
        result = await worker.answer(url, "acme")
    assert (result.outcome, result.error and result.error.code) == ("failed", "no_payload")
    assert result.error is not None and "its storage answered 403" in result.error.message


async def test_missing_credentials_fail_the_job(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(storage, "acme/q.json", prompt="a")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with loading(**reading_from(storage)) as worker:
        result = await worker.answer(url, "acme")
    assert (result.outcome, result.error and result.error.code) == ("failed", "no_payload")


async def test_a_storage_that_is_away_fails_the_job() -> None:
    async with loading(**reading_from("http://127.0.0.1:9")) as worker:
        result = await worker.answer("s3://uploads/acme/q.json", "acme")
    assert (result.outcome, result.error and result.error.code) == ("failed", "no_payload")
    assert result.error is not None and "its storage does not answer" in result.error.message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_storage_that_answers_with_a_wrong_header_fails_the_job() -> None:
    async with speaking(saying(b"{}", "Last-Modified: soon")) as origin, loading(**reading_from(origin)) as worker:
        result = await worker.answer("s3://uploads/acme/q.json", "acme")
    assert (result.outcome, result.error and result.error.code) == ("failed", "no_payload")
    gc.collect()  # closes the socket that botocore leaves open after an answer that it cannot parse


async def test_a_storage_that_redirects_for_ever_fails_the_job() -> None:
    asked: list[str] = []
    redirecting = saying(b"", "Location: /elsewhere", status="307 Temporary Redirect")
    async with speaking(redirecting, targets=asked) as origin, loading(**reading_from(origin)) as worker:
        result = await worker.answer("s3://uploads/acme/q.json", "acme")
    assert (result.outcome, result.error and result.error.code) == ("failed", "no_payload")
    assert result.error is not None and "its storage answered 307" in result.error.message
    assert set(asked) == {"/uploads/acme/q.json", "/uploads"}
    assert len(asked) == 2 * (len(attached.PAUSES) + 1)  # each try asks once for the object and once for its region


async def test_a_job_that_is_cancelled_while_the_storage_hangs_ends_at_once() -> None:
    connected, is_over, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await is_over.wait()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with loading(**reading_from(endpoint, seconds=600)) as worker, asyncio.timeout(120):
            running = asyncio.ensure_future(worker.answer("s3://uploads/default/q.json", job_id="job_1"))
            await connected.wait()
            worker.cancel("job_1")
            assert (await running).outcome == "cancelled"
            is_over.set()
            await closed.wait()


DRIPPING = {
    "body": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
    "head": b"HTTP/1.1 200 OK\r\nX-Slow: ",
    "status": b"HTTP/1.1 200 ",
    "error's body": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 1000000\r\n\r\n<Error>",
    "redirect's body": b"HTTP/1.1 301 Moved\r\nx-amz-bucket-region: eu-west-1\r\nContent-Length: 1000000\r\n\r\n",
    "interim answers": b"HTTP/1.1 100 Continue\r\n",
}


def dripping(start: bytes) -> Script:
    """A script that says `start`, and then ten bytes a second for as long as the client listens."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while not reader.at_eof():
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.1)

    return script


@pytest.mark.parametrize("is_encrypted", [False, True])
@pytest.mark.parametrize("part", DRIPPING)
async def test_a_storage_that_drips_holds_no_thread_of_jobs_that_have_left(
    part: str, is_encrypted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread of the worker reads an answer that would take hours; then all of these jobs are cancelled."""
    authority = Authority.create(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.ca_file))
    targets: list[str] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = dripping(DRIPPING[part]) if len(targets) <= THREADS else saying(b'{"prompt": "Who?"}')
        await said(reader, writer)

    tls = authority.server() if is_encrypted else None
    async with (
        speaking(script, targets=targets, tls=tls) as origin,
        loading(**reading_from(origin, seconds=600, jobs=4 * THREADS)) as worker,
        asyncio.timeout(120),
    ):
        names = [f"job_{number}" for number in range(THREADS)]
        running = [asyncio.ensure_future(worker.answer("s3://uploads/default/q.json", job_id=name)) for name in names]
        while len(targets) < THREADS:
            await asyncio.sleep(0.01)
        for name in names:
            worker.cancel(name)
        assert {(await one).outcome for one in running} == {"cancelled"}
        assert (await worker.answer("s3://uploads/default/q.json")).text == "Who?"


async def test_a_job_whose_storage_drips_ends_at_its_deadline_and_frees_its_thread() -> None:
    ended = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await dripping(DRIPPING["head"])(reader, writer)
        finally:
            ended.set()

    async with (
        speaking(script) as origin,
        loading(**reading_from(origin, seconds=0.5)) as worker,
        asyncio.timeout(120),
    ):
        result = await worker.answer("s3://uploads/default/q.json")
        await ended.wait()
    assert (result.outcome, result.error and result.error.code) == ("failed", "no_payload")
    assert result.error is not None and "it took longer than 0.5 s" in result.error.message


def test_a_folder_without_boto3_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.delitem(sys.modules, "workers.system.s3", raising=False)
    S3Objects(PayloadSettings()).close()
    with pytest.raises(ProcessError, match=r"boto3 is missing; install postback\[s3\]"):
        S3Objects(PayloadSettings(s3=(ObjectFolder("uploads", ""),)))


def test_an_unusable_profile_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "none")
    with pytest.raises(ProcessError, match=r"boto3 cannot use .* \(ProfileNotFound\)"):
        S3Objects(PayloadSettings(s3=(ObjectFolder("uploads", ""),)))


@pytest.mark.parametrize("folders", ["uploads", "s3://uploads", "s3://uploads/acme", "s3://UP/", "https://a/b/"])
def test_a_path_that_is_no_folder_is_refused_by_its_name(folders: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_PAYLOADS__S3", folders)
    with pytest.raises(ValueError, match=r"not s3://BUCKET/ or s3://BUCKET/PREFIX/ with a slash at the end"):
        PayloadSettings()


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
def hostile_storage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Storage]:
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
def blobs(hostile_storage: Storage) -> S3Blobs:
    return S3Blobs("fleet", "", hostile_storage.endpoint)


@pytest.fixture
def objects(hostile_storage: Storage) -> Iterator[S3Objects]:
    reader = S3Objects(PayloadSettings(s3=(ObjectFolder("fleet", ""),), s3_endpoint=hostile_storage.endpoint))
    yield reader
    reader.close()


def put_file(blobs: S3Blobs, content: bytes) -> None:
    writer = blobs.create("any")
    try:
        writer.write(content)
        writer.commit()
    finally:
        writer.abort()


CALLS: list[Callable[[S3Blobs], object]] = [
    lambda blobs: b"".join(blobs.read("any")),
    lambda blobs: put_file(blobs, b"abc"),
    lambda blobs: put_file(blobs, b"abcdefghi"),
    lambda blobs: blobs.delete("any"),
]


@settings(max_examples=drawn(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=answers)
def test_a_workers_read_gives_bytes_or_unreadable_for_any_answer(
    hostile_storage: Storage, objects: S3Objects, said: bytes
) -> None:
    hostile_storage.said = said
    with suppress(Unreadable):
        assert isinstance(asyncio.run(objects.read("s3://fleet/any", "acme", 50)), bytes)


@settings(max_examples=drawn(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=answers)
def test_the_gateways_files_raise_only_the_declared_errors_for_any_answer(
    hostile_storage: Storage, blobs: S3Blobs, said: bytes
) -> None:
    hostile_storage.said = said
    read, *changes = CALLS
    with suppress(BlobMissing, BlobsAway):
        read(blobs)
    for change in changes:
        with suppress(BlobsAway):
            change(blobs)


@pytest.mark.parametrize("call", CALLS, ids=["read", "put", "multipart", "delete"])
def test_a_storage_that_redirects_for_ever_is_away(
    hostile_storage: Storage, blobs: S3Blobs, call: Callable[[S3Blobs], object]
) -> None:
    hostile_storage.said = written(307, ["Location: /elsewhere"], b"")

    with pytest.raises(BlobsAway, match=r"refuses a request \(307\)"):
        call(blobs)

    assert hostile_storage.asked == 2  # one request asked for the object, and one for the bucket's region


@pytest.mark.parametrize("change", CALLS[1:], ids=["put", "multipart", "delete"])
def test_a_change_answered_with_a_code_of_reads_is_refused(
    hostile_storage: Storage, blobs: S3Blobs, change: Callable[[S3Blobs], object]
) -> None:
    for code in ("NoSuchKey", "InvalidRange"):
        hostile_storage.said = written(404, [], f"<Error><Code>{code}</Code></Error>".encode())
        with pytest.raises(BlobError, match=code):
            change(blobs)


def test_a_codes_noise_never_reaches_the_error(hostile_storage: Storage, blobs: S3Blobs) -> None:
    hostile_storage.said = written(400, [], b"<Error><Code>secret value\n2</Code></Error>")

    with pytest.raises(BlobsAway, match=r"refuses a request \(unknown\)"):
        b"".join(blobs.read("any"))
