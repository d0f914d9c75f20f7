"""A worker's handler, and a whole worker, fetch a job's question behind the guard, screen it and answer it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from schemas.job import MAX_JOB_BYTES, Sources
from schemas.payload import MAX_VALUES
from schemas.result import Result
from schemas.topics import TENANT
from telemetry.metrics import Metrics
from tests.handlers import inference_handler
from tests.http_handler import Answering, handling
from tests.images import PNG, image_part
from tests.integration.certificates import Authority
from tests.integration.fetching_worker import FetchingWorker
from tests.integration.raw_server import CLOCK, LOOPBACK, Script, saying, speaking
from tests.product import Product
from tests.s3_server import ACCESS, SECRET, s3_server
from tests.screening_rules import CARD, pii, screen_of
from workers.egress import Guard
from workers.engines.echo import EchoEngine, EchoSettings
from workers.enrichment.answering.citations import Draft
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Evidence
from workers.enrichment.fetching import attached
from workers.enrichment.settings import EnrichmentSettings, PayloadSettings
from workers.screening.screen import Screen


class Worker(FetchingWorker):
    """A handler with a real enricher, whose jobs have payloads."""

    async def answer(self, url: str, tenant: str = "default", **fields: Any) -> Result:
        """The one result of a job whose question is at this URL."""
        return await self.answered({"payload_url": url, **fields}, [(TENANT, tenant.encode())])


@asynccontextmanager
async def loading(
    screen: Screen | None = None, engine: type[EchoEngine] = EchoEngine, **settings: Any
) -> AsyncIterator[Worker]:
    metrics = Metrics()
    values = {"robots": False, "budget_seconds": 120, "member_seconds": 60}
    payloads = PayloadSettings.model_validate({"seconds": 60, **settings})
    guard = Guard(LOOPBACK)
    enricher = Enricher(EnrichmentSettings.model_validate(values), guard, CLOCK, metrics, payloads=payloads)
    await enricher.start()
    try:
        yield Worker(inference_handler(engine(EchoSettings(), metrics), enricher, metrics, screen=screen))
    finally:
        await enricher.close()


def document(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def serving(**fields: Any) -> Script:
    """A script that sends a document with these fields."""
    return saying(document(**fields), "Content-Type: application/json")


async def refused(script: Script, **settings: Any) -> Result:
    """The result of a job with a document of this server; its text names at most the origin of the URL."""
    async with speaking(script) as origin, loading(**settings) as worker:
        result = await worker.answer(f"{origin}/secret/q.json?token=t0ken")
    assert result.error is not None
    assert result.error.message.startswith("payload_url: ")
    assert "secret" not in result.error.message and "t0ken" not in result.error.message
    return result


async def test_a_question_larger_than_any_record_is_answered_with_the_records_options() -> None:
    question = "Why is the sky blue? " * 40_000
    payload = document(prompt=question, sources={"documents": [{"id": "note", "text": "Air scatters blue light."}]})
    assert len(payload) > 512 * 1024
    targets: list[str] = []
    async with speaking(saying(payload), targets=targets) as origin, loading() as worker:
        digest = hashlib.sha256(payload).hexdigest()
        result = await worker.answer(
            f"{origin}/q?signature=1", payload_sha256=digest, max_tokens=3, metadata={"a": "b"}, custom_id="row-1"
        )
    assert (result.outcome, result.metadata, result.custom_id) == ("succeeded", {"a": "b"}, "row-1")
    assert result.usage is not None
    assert result.usage.completion_tokens == 3 and result.usage.prompt_tokens > 100_000
    assert targets == ["/q?signature=1"]
    assert result.timings is not None and result.timings.enrich_ms


async def test_of_a_question_larger_than_any_record_the_start_and_the_end_are_read_for_sources_and_links(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading 8 MiB of a question would block the event loop, and with it all other jobs, for seconds."""
    read: list[str] = []

    async def enriched(self: Enricher, sources: Sources, question: str, **more: Any) -> Evidence:
        read.append(question)
        return await enrich(self, sources, question, **more)

    def cited(text: str, evidence: Evidence, *more: Any, **named: Any) -> Draft:
        read.extend((evidence.question, evidence.conversation))
        return drafted(text, evidence, *more, **named)

    enrich, drafted = Enricher.enrich, Draft.of
    monkeypatch.setattr(Enricher, "enrich", enriched)
    monkeypatch.setattr(Draft, "of", cited)
    question = "Why is the sky blue? " + "It is said to be. " * 60_000 + "Is it so at night?"
    chat = document(
        messages=[{"role": "user", "content": question}],
        sources={"documents": [{"id": "note", "text": "Air scatters blue light."}]},
    )
    async with speaking(saying(chat)) as origin, loading() as worker:
        result = await worker.answer(f"{origin}/q", max_tokens=3)
    assert result.usage is not None and result.usage.prompt_tokens > 250_000, "the engine gets the whole question"
    assert len(read) == 3
    for text in read:
        assert text.startswith("Why is the sky blue? ") and text.endswith(" Is it so at night?")
        assert len(text) < MAX_JOB_BYTES + 10


async def test_a_chat_with_an_image_and_an_unknown_field_is_answered_as_from_a_record() -> None:
    async with speaking(saying(PNG)) as pictures:
        parts = [{"type": "text", "text": "Describe it."}, image_part(f"{pictures}/a.png")]
        chat = serving(messages=[{"role": "user", "content": parts}], tool=1)
        async with speaking(chat) as origin, loading() as worker:
            result = await worker.answer(f"{origin}/q", colour="blue")
    assert result.text == f"Describe it. [image/png, {len(PNG)} bytes]"
    [note] = result.notes
    assert "`colour`" in note and "`tool` (did you mean `tools`?)" in note


async def test_another_kind_of_question_is_answered_too() -> None:
    async with speaking(serving(embed=["a", "b"])) as origin, loading() as worker:
        result = await worker.answer(f"{origin}/q", dimensions=2)
    assert [len(vector) for vector in result.embeddings or ()] == [2, 2]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (saying(b"<html>"), "it has these problems: value: is not JSON: expected value"),
        (saying(b""), "it has these problems: value: is not JSON: EOF"),
        (serving(payload_url="https://a.example/"), "it has `payload_url`, and a document cannot name"),
        (serving(prompt="a", callback_url="https://a.example/"), "it has `callback_url`; move this into the record"),
        (saying(b'{"prompt": "a", "x": [' + b"[]," * MAX_VALUES + b"[]]}"), f"it has more than {MAX_VALUES} values"),
        (saying(b"", status="404 Not Found"), "its server answered 404"),
        (saying(b"", "Location: http://10.0.0.1/x", status="302 Found"), "the address is not public"),
        (saying(b"", "Location: file:///etc/passwd", status="302 Found"), "may not be fetched"),
        (serving(prompt="a" * 200_000), "it is larger than 200000 bytes"),
    ],
)
async def test_a_document_that_cannot_be_used_rejects_the_job(script: Script, reason: str) -> None:
    result = await refused(script, most_bytes=200_000)
    assert result.outcome == "rejected"
    assert result.error is not None and result.error.code == "invalid_job"
    assert result.error.message.startswith("payload_url: the payload cannot be used: ")
    assert reason in result.error.message


async def test_an_endless_document_ends_at_the_bound() -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 OK\r\n\r\n{"prompt":"')
        while True:
            writer.write(b"a" * 65_536)
            await writer.drain()

    result = await refused(script, most_bytes=1_000_000)
    assert result.outcome == "rejected"


async def test_a_document_with_another_digest_rejects_the_job() -> None:
    async with speaking(serving(prompt="a")) as origin, loading() as worker:
        result = await worker.answer(f"{origin}/q", payload_sha256="0" * 64)
    assert result.outcome == "rejected"
    assert (
        result.error is not None and "its SHA-256 is not `payload_sha256`; send the job again" in result.error.message
    )


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/x", "https://169.254.169.254/latest/meta-data", "https://[::1]/", "s3://uploads/a"]
)
async def test_a_place_that_no_job_may_reach_rejects_the_job(url: str) -> None:
    async with loading() as worker:
        result = await worker.answer(url)
    assert result.outcome == "rejected"
    assert result.error is not None
    assert result.error.message.startswith("payload_url: the payload cannot be used: ")


async def test_a_server_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "PAUSES", (0.0, 0.0))
    broken = saying(b'{"prompt": "', "Content-Length: 9000")
    scripts = [saying(b"", status="503 Service Unavailable"), broken, serving(prompt="Why?")]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await scripts.pop(0)(reader, writer)

    async with speaking(script) as origin, loading() as worker:
        result = await worker.answer(f"{origin}/q")
    assert (result.outcome, result.text, scripts) == ("succeeded", "Why?", [])


async def test_a_server_that_keeps_failing_fails_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "PAUSES", (0.0, 0.0))
    result = await refused(saying(b"", status="503 Service Unavailable"))
    assert result.outcome == "failed"
    assert result.error is not None and result.error.code == "no_payload"
    assert result.error.message == "payload_url: its server answered 503"


async def never(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n{"prompt":')
    await asyncio.Event().wait()


async def test_a_server_that_never_ends_its_document_fails_the_job_at_the_time_of_the_settings() -> None:
    result = await refused(never, seconds=0.2)
    assert result.outcome == "failed"
    assert result.error is not None and "it took longer than 0.2 s" in result.error.message


async def test_jobs_at_a_server_that_hangs_leave_places_to_the_same_tenants_jobs_at_another_server() -> None:
    targets: list[str] = []
    async with (
        speaking(never, targets=targets) as hung,
        speaking(serving(prompt="Why?")) as origin,
        loading(jobs=4, seconds=600) as worker,
        asyncio.timeout(120),
    ):
        waiting = [asyncio.ensure_future(worker.answer(f"{hung}/{number}", job_id=str(number))) for number in range(9)]
        while len(targets) < 2:
            await asyncio.sleep(0.001)
        assert (await worker.answer(f"{origin}/a")).outcome == "succeeded"
        assert len(targets) == 2
        for number in range(9):
            worker.cancel(str(number))
        assert {result.outcome for result in await asyncio.gather(*waiting)} == {"cancelled"}


async def test_a_job_that_expires_while_its_document_is_fetched_ends_as_expired() -> None:
    async with speaking(never) as origin, loading(seconds=600) as worker, asyncio.timeout(120):
        result = await worker.answer(f"{origin}/q", ttl_seconds=0.3)
    assert result.outcome == "expired"


async def test_a_job_that_is_cancelled_while_its_document_is_fetched_ends_at_once() -> None:
    targets: list[str] = []
    async with speaking(never, targets=targets) as origin, loading(seconds=600) as worker, asyncio.timeout(120):
        result = await worker.cancelled("job_1", worker.answer(f"{origin}/q", job_id="job_1"), targets)
        again = await worker.answer(f"{origin}/q", job_id="job_1")
    assert (result.outcome, again.outcome, len(targets)) == ("cancelled", "cancelled", 1)


async def test_jobs_beyond_the_setting_wait_until_others_have_ended() -> None:
    """The number of jobs that may hold payloads bounds the memory for them."""
    targets: list[str] = []
    async with speaking(serving(prompt="[[sleep 600]]"), targets=targets) as origin, loading(jobs=1) as worker:
        holding = asyncio.ensure_future(worker.answer(f"{origin}/1", job_id="job_1"))
        while not targets:
            await asyncio.sleep(0.001)
        waiting = asyncio.ensure_future(worker.answer(f"{origin}/2", job_id="job_2"))
        await asyncio.sleep(0.1)
        assert targets == ["/1"]
        worker.cancel("job_1")
        assert (await holding).outcome == "cancelled"
        while len(targets) < 2:
            await asyncio.sleep(0.001)
        worker.cancel("job_2")
        assert (await waiting).outcome == "cancelled"


async def test_the_input_filter_reads_the_document_and_the_record(tmp_path: Path) -> None:
    fields = 'fields = ["prompt", "messages", "metadata"]'
    screen = screen_of(
        tmp_path, pii(more=fields), 'name = "no"\nkind = "regex"\npatterns = ["falcon"]\nverdict="reject"'
    )
    scripts = {"/card": serving(prompt=f"pay {CARD}"), "/no": serving(messages=[{"role": "user", "content": "falcon"}])}
    targets: list[str] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await scripts[targets[-1]](reader, writer)

    async with speaking(script, targets=targets) as origin, loading(screen) as worker:
        redacted = await worker.answer(f"{origin}/card", metadata={"card": CARD})
        rejected = await worker.answer(f"{origin}/no")
    assert (redacted.text, redacted.metadata) == ("pay [redacted:card]", {"card": "[redacted:card]"})
    assert {(found.field, found.rule) for found in redacted.screening or ()} == {("prompt", "pii"), ("metadata", "pii")}
    assert (rejected.outcome, rejected.error and rejected.error.code) == ("rejected", "screened")
    assert rejected.error is not None and rejected.error.message.startswith("messages: the rule no")


async def test_a_job_without_its_document_keeps_its_metadata_redacted(tmp_path: Path) -> None:
    screen = screen_of(tmp_path, pii(more='fields = ["metadata"]'))
    async with speaking(never) as origin, loading(screen, seconds=0.2) as worker:
        result = await worker.answer(f"{origin}/q", metadata={"card": CARD})
    assert (result.outcome, result.metadata) == ("failed", {"card": "[redacted:card]"})


async def test_no_log_line_has_the_path_or_the_query_of_a_payloads_url(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="postback")
    async with loading() as worker:
        for script in (serving(prompt="secret text"), saying(b"secret"), saying(b"", status="404 Not Found")):
            async with speaking(script) as origin:
                await worker.answer(f"{origin}/secret/q.json?token=t0ken")
        await worker.answer("s3://uploads/secret/t0ken")
    assert "Rejected job" in caplog.text
    assert "secret" not in caplog.text and "t0ken" not in caplog.text


pytestmark = [pytest.mark.broker, pytest.mark.timeout(1_200)]  # on a bare machine, the S3 server is built first

QUESTION = {"prompt": "Why is the sky blue? " * 40_000}
DOCUMENTS = {
    "/large": json.dumps(QUESTION).encode(),
    "/card": json.dumps({"messages": [{"role": "user", "content": f"pay {CARD}"}]}).encode(),
    "/broken": b'{"prompt": ',
}


@contextmanager
def serving_over_tls(documents: Mapping[str, bytes], context: ssl.SSLContext) -> Iterator[str]:
    """An https server that has these documents at these paths; yields its origin."""

    class Handler(Answering):
        def do_GET(self) -> None:
            found = documents.get(self.path.partition("?")[0])
            self.answer(200 if found is not None else 404, found or b"")

    with handling(Handler, context) as origin:
        yield origin


def authority_in(folder: Path) -> Authority:
    folder.mkdir()
    return Authority.create(folder)


def rights(endpoint: str, authority: Authority, rules: Path) -> dict[str, str]:
    """The environment of a worker that may read from both places, and screens jobs."""
    return {
        "POSTBACK_EGRESS__ALLOW_FETCH": "127.0.0.1/32",
        "POSTBACK_PAYLOADS__S3": "s3://uploads/{tenant}/",
        "POSTBACK_PAYLOADS__S3_ENDPOINT": endpoint,
        "POSTBACK_SCREENING__RULES": str(rules),
        "SSL_CERT_FILE": str(authority.ca_file),
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def put(endpoint: str, key: str, document: bytes) -> None:
    names = {"aws_access_key_id": ACCESS, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    client = boto3.session.Session(**names).client("s3", endpoint_url=endpoint)
    client.put_object(Bucket="uploads", Key=key, Body=document)
    client.close()


def references(origin: str, strange: str) -> dict[str, str]:
    """Maps each job to the URL of its question. The server at `strange` has a certificate that no worker accepts."""
    return {
        "by-https": f"{origin}/large?token=t0ken",
        "by-s3": "s3://uploads/default/q.json",
        "redacted": f"{origin}/card",
        "broken": f"{origin}/broken?token=t0ken",
        "missing": f"{origin}/none?token=t0ken",
        "changed": f"{origin}/card",
        "another-tenants": "s3://uploads/acme/q.json",
        "strange": f"{strange}/large?token=t0ken",
        "inside": "https://10.1.2.3/q?token=t0ken",
        "away": "https://127.0.0.1:9/q?token=t0ken",
    }


def test_each_job_with_a_reference_is_answered_or_refused_once(product: Product, tmp_path: Path) -> None:
    authority, stranger = authority_in(tmp_path / "ours"), authority_in(tmp_path / "theirs")
    rules = tmp_path / "rules.toml"
    rules.write_text(f"[[rule]]\n{pii()}\n")
    product.callbacks.up()
    digest = hashlib.sha256(DOCUMENTS["/large"]).hexdigest()
    with (
        s3_server(tmp_path / "s3" / "data", "uploads") as endpoint,
        serving_over_tls(DOCUMENTS, authority.server()) as origin,
        serving_over_tls(DOCUMENTS, stranger.server()) as strange,
    ):
        for key in ("default/q.json", "acme/q.json"):
            put(endpoint, key, DOCUMENTS["/large"])
        worker = product.worker(
            "w1",
            "--engine",
            "echo",
            "--with-delivery",
            **rights(endpoint, authority, rules),
            POSTBACK_LOG_LEVEL="DEBUG",
        )
        urls = references(origin, strange)
        asked = {"callback_url": product.callbacks.url, "max_tokens": 5, "metadata": {"a": "b"}}
        jobs = [{"job_id": name, "payload_url": url, **asked} for name, url in urls.items()]
        for job in jobs:
            job |= {"payload_sha256": digest} if job["job_id"] in ("by-https", "by-s3", "changed") else {}
        product.submit(jobs)
        product.wait_for_callbacks(len(urls), 120)
        product.wait_until_nothing_is_left()

    product.assert_each_is_answered_once_and_called_back(urls)
    answered = dict.fromkeys(("by-https", "by-s3", "redacted"), "succeeded")
    refused = dict.fromkeys(("broken", "missing", "changed", "another-tenants", "inside"), "rejected")
    failed = {"away": "its server could not be reached", "strange": "its certificate was not accepted"}
    assert product.outcomes() == {**answered, **refused, **dict.fromkeys(failed, "failed")}
    data = {name: one[0].event["data"] for name, one in product.callbacks.events.items()}
    for name in ("by-https", "by-s3"):
        assert data[name]["usage"]["prompt_tokens"] > 100_000 and data[name]["metadata"] == {"a": "b"}
    assert data["redacted"]["text"] == "pay [redacted:card]"
    for name, reason in failed.items():
        assert data[name]["error"] == {"code": "no_payload", "message": f"payload_url: {reason}"}
    for name, reason in {
        "broken": "value: is not JSON",
        "missing": "its server answered 404",
        "changed": "its SHA-256 is not `payload_sha256`",
        "another-tenants": "the operator does not allow this tenant to read there",
        "inside": "the address is not public",
    }.items():
        error = data[name]["error"]
        assert error["code"] == "invalid_job" and error["message"].startswith(
            "payload_url: the payload cannot be used: "
        )
        assert reason in error["message"] and "t0ken" not in error["message"]
    assert len(product.dead_letters()) == len(refused)
    assert "t0ken" not in worker.said() and "q.json" not in worker.said()
    assert worker.lines()
