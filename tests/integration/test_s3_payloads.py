"""A job's question in a bucket of a real S3 server: read with the operator's rights, and only where they allow it."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.integration.certificates import Authority
from tests.integration.raw_server import Script, saying, speaking
from tests.integration.test_job_payloads import loading
from tests.s3_server import ACCESS, SECRET, s3_server
from workers.enrichment.fetching import attached
from workers.enrichment.fetching.s3 import THREADS, S3Objects
from workers.enrichment.settings import ObjectFolder, PayloadSettings
from workers.system.errors import ProcessError

pytestmark = pytest.mark.timeout(1_200)  # the first test builds the S3 server, which takes minutes

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


def settings(endpoint: str, **more: Any) -> dict[str, Any]:
    return {"s3": FOLDERS, "s3_endpoint": endpoint, **more}


async def test_a_tenants_own_object_and_a_shared_one_are_the_question(storage: str) -> None:
    question = "Why is the sky blue? " * 40_000
    own = put(storage, "acme/a file, 100 %.json", prompt=question)
    shared = put(storage, "shared/q.json", prompt="Who?")
    async with loading(**settings(storage)) as worker:
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
    async with loading(**settings(storage, most_bytes=2000)) as worker:
        result = await worker.answer(url, "acme")
    assert result.outcome == "rejected"
    assert result.error is not None
    assert result.error.message.startswith(f"payload_url: the payload cannot be used: {reason}")


async def test_credentials_that_the_storage_does_not_know_fail_the_job(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(storage, "acme/q.json", prompt="a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    async with loading(**settings(storage)) as worker:
        result = await worker.answer(url, "acme")
    assert (result.outcome, result.error and result.error.code) == ("failed", "no_payload")
    assert result.error is not None and "its storage answered 403" in result.error.message


async def test_missing_credentials_fail_the_job(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(storage, "acme/q.json", prompt="a")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with loading(**settings(storage)) as worker:
        result = await worker.answer(url, "acme")
    assert (result.outcome, result.error and result.error.code) == ("failed", "no_payload")


async def test_a_storage_that_is_away_fails_the_job() -> None:
    async with loading(**settings("http://127.0.0.1:9")) as worker:
        result = await worker.answer("s3://uploads/acme/q.json", "acme")
    assert (result.outcome, result.error and result.error.code) == ("failed", "no_payload")
    assert result.error is not None and "its storage does not answer" in result.error.message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_storage_that_answers_with_a_wrong_header_fails_the_job() -> None:
    async with speaking(saying(b"{}", "Last-Modified: soon")) as origin, loading(**settings(origin)) as worker:
        result = await worker.answer("s3://uploads/acme/q.json", "acme")
    assert (result.outcome, result.error and result.error.code) == ("failed", "no_payload")
    gc.collect()  # closes the socket that botocore leaves open after an answer that it cannot parse


async def test_a_storage_that_redirects_for_ever_fails_the_job() -> None:
    asked: list[str] = []
    redirecting = saying(b"", "Location: /elsewhere", status="307 Temporary Redirect")
    async with speaking(redirecting, targets=asked) as origin, loading(**settings(origin)) as worker:
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
        async with loading(**settings(endpoint, seconds=600)) as worker, asyncio.timeout(120):
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
        loading(**settings(origin, seconds=600, jobs=4 * THREADS)) as worker,
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
        loading(**settings(origin, seconds=0.5)) as worker,
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
