"""A job's images and its question by URL: a worker fetches them behind the guard, screens the job and answers it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from schemas.codec import read_result
from schemas.control import ControlState, JobControl, job_key_bytes, write_control
from schemas.images import data_url
from schemas.job import MAX_JOB_BYTES, Sources
from schemas.payload import MAX_VALUES
from schemas.result import Result
from schemas.topics import TENANT
from telemetry.clock import unix_ms
from telemetry.metrics import Metrics
from tests.handlers import TOPICS, inference_handler
from tests.http_handler import Answering, handling
from tests.images import GIF, PNG, WEBP, image_part
from tests.integration.certificates import Authority
from tests.integration.raw_server import CLOCK, LOOPBACK, Script, saying, speaking
from tests.product import Product
from tests.s3_server import ACCESS, SECRET, s3_server
from tests.screening_rules import CARD, pii, screen_of
from workers.egress import Guard
from workers.engines.base import NO_IMAGES, Completion, GenerationRequest, RequestRejected
from workers.engines.body import parts_of, text_of
from workers.engines.echo import EchoEngine, EchoSettings
from workers.enrichment.answering.citations import Draft
from workers.enrichment.enrich import Enricher
from workers.enrichment.evidence import Evidence
from workers.enrichment.fetching import attached
from workers.enrichment.settings import EnrichmentSettings, PayloadSettings
from workers.inference.handler import InferenceHandler
from workers.screening.screen import Screen
from workers.stage.record import Record


class FetchingWorker:
    """Answers records of jobs, and cancels jobs of the default tenant."""

    def __init__(self, handler: InferenceHandler) -> None:
        self.handler = handler

    def cancel(self, job_id: str) -> None:
        """Cancel this job of the default tenant."""
        said = JobControl(tenant="default", job_id=job_id, state=ControlState.CANCELLED, at=unix_ms(CLOCK))
        self.handler.cancellations.apply(job_key_bytes(said.key), write_control(said))

    async def answered(self, job: Mapping[str, Any], headers: Sequence[tuple[str, bytes]] = ()) -> Result:
        """The one result of this job."""
        at_ms = int(CLOCK.time() * 1000)
        record = Record(TOPICS.requests(), 0, 7, json.dumps(job).encode(), b"key", [*headers], at_ms)
        outputs = await self.handler.handle(record)
        results = [output for output in outputs if output.topic == TOPICS.results]
        assert len(results) == 1
        return read_result(results[0].value)

    async def cancelled(self, job_id: str, answer: Coroutine[Any, Any, Result], targets: Sequence[str]) -> Result:
        """The result of a job that is cancelled once its server has a request."""
        running = asyncio.ensure_future(answer)
        while not targets:
            await asyncio.sleep(0.001)
        self.cancel(job_id)
        return await running


IMAGE = "Content-Type: image/png"


class BlindEngine(EchoEngine):
    """An echo engine that accepts only text."""

    def takes_images(self, model_id: str | None) -> bool:
        return False


class SeeingWorker(FetchingWorker):
    """A handler with a real enricher, whose jobs have images."""

    async def answer(self, *urls: str, text: str = "Describe the image.", **fields: Any) -> Result:
        """The one result of a job with this text and these images."""
        parts = [{"type": "text", "text": text}, *map(image_part, urls)]
        return await self.answered({"messages": [{"role": "user", "content": parts}], **fields})


@asynccontextmanager
async def looking(engine: type[EchoEngine] = EchoEngine, **settings: Any) -> AsyncIterator[SeeingWorker]:
    metrics = Metrics()
    values = {"robots": False, "budget_seconds": 120, "member_seconds": 60, "image_seconds": 60.0, **settings}
    enricher = Enricher(EnrichmentSettings.model_validate(values), Guard(LOOPBACK), CLOCK, metrics)
    await enricher.start()
    try:
        yield SeeingWorker(inference_handler(engine(EchoSettings(), metrics), enricher, metrics))
    finally:
        await enricher.close()


async def image_refused(script: Script, **settings: Any) -> Result:
    """The result of a job with an image of this server; its text names only the origin of the URL."""
    async with speaking(script) as origin, looking(**settings) as worker:
        result = await worker.answer(f"{origin}/secret/cat.png?token=t0ken")
    assert result.error is not None
    assert "messages.0.content.1: " in result.error.message
    assert "secret" not in result.error.message and "t0ken" not in result.error.message
    return result


async def test_the_engine_gets_the_bytes_of_each_image_once_however_often_the_job_names_it() -> None:
    targets: list[str] = []
    async with speaking(saying(GIF, IMAGE), targets=targets) as origin, looking() as worker:
        result = await worker.answer(f"{origin}/a", data_url("image/webp", WEBP), f"{origin}/a")
    gif = f"[image/gif, {len(GIF)} bytes]"
    assert result.text == f"Describe the image. {gif} [image/webp, {len(WEBP)} bytes] {gif}"
    assert targets == ["/a"]
    assert result.timings is not None and result.timings.enrich_ms


async def test_a_redirect_leads_to_the_image() -> None:
    async with speaking(saying(PNG, IMAGE)) as there:
        moved = saying(b"", f"Location: {there}/b", status="302 Found")
        async with speaking(moved) as here, looking() as worker:
            result = await worker.answer(f"{here}/a")
    assert result.text == f"Describe the image. [image/png, {len(PNG)} bytes]"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (saying(b"<svg onload=alert(1)/>", "Content-Type: image/svg+xml"), "it is no png, jpeg, gif or webp image"),
        (saying(b"<html>", IMAGE), "it is no png, jpeg, gif or webp image"),
        (saying(b"", IMAGE), "it is no png, jpeg, gif or webp image"),
        (saying(b"", status="404 Not Found"), "its server answered 404"),
        (saying(b"", "Location: http://10.0.0.1/x.png", status="302 Found"), "the address is not public"),
        (saying(b"", "Location: file:///etc/passwd", status="302 Found"), "may not be fetched"),
        (saying(PNG + b"\0" * 5000, IMAGE), "larger than 4096 bytes together"),
    ],
)
async def test_an_image_that_cannot_be_used_rejects_the_job(script: Script, reason: str) -> None:
    result = await image_refused(script, image_bytes=4096)
    assert result.outcome == "rejected"
    assert result.error is not None and reason in result.error.message


async def test_the_bound_holds_for_all_images_of_a_job_together() -> None:
    async with speaking(saying(PNG + b"\0" * 3000, IMAGE)) as origin, looking(image_bytes=8192) as worker:
        assert (await worker.answer(f"{origin}/1", f"{origin}/2")).outcome == "succeeded"
        result = await worker.answer(*(f"{origin}/{number}" for number in range(3)))
    assert (result.outcome, result.error and result.error.message.rpartition(": ")[2]) == (
        "rejected",
        "the job's images are larger than 8192 bytes together",
    )


async def test_an_image_counts_as_often_as_the_job_names_it() -> None:
    """The request to the engine repeats the bytes: sixteen times an image of eight megabytes would be 180 megabytes."""
    async with speaking(saying(PNG + b"\0" * 3000, IMAGE)) as origin, looking(image_bytes=8192) as worker:
        assert (await worker.answer(*[f"{origin}/a"] * 2)).outcome == "succeeded"
        result = await worker.answer(*[f"{origin}/a"] * 3)
    assert result.outcome == "rejected"
    assert result.error is not None and "larger than 8192 bytes together" in result.error.message


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/x.png",
        "https://169.254.169.254/latest/meta-data",
        "http://[::ffff:10.0.0.1]/",
        "https://[::1]/",
    ],
)
async def test_an_address_that_is_not_public_is_refused(url: str) -> None:
    async with looking() as worker:
        result = await worker.answer(url)
    assert result.outcome == "rejected"
    assert result.error is not None and "messages.0.content.1: the image cannot be used" in result.error.message


async def test_a_server_that_fails_is_tried_again_and_the_room_of_the_failed_try_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attached, "PAUSES", (0.0, 0.0))
    broken = saying(PNG + b"\0" * 2000, IMAGE, "Content-Length: 9000")
    scripts = [saying(b"", status="503 Service Unavailable"), broken, saying(PNG + b"\0" * 3000, IMAGE)]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await scripts.pop(0)(reader, writer)

    async with speaking(script) as origin, looking(image_bytes=4096) as worker:
        result = await worker.answer(f"{origin}/a")
    assert (result.outcome, scripts) == ("succeeded", [])


async def test_jobs_beyond_the_setting_wait_until_others_have_ended() -> None:
    """The number of jobs that may hold fetched images bounds the memory for them."""
    targets: list[str] = []
    async with speaking(saying(PNG, IMAGE), targets=targets) as origin, looking(image_jobs=1) as worker:
        await worker.answer(f"{origin}/1")
        holding = asyncio.ensure_future(worker.answer(f"{origin}/2", text="[[sleep 600]]", job_id="job_2"))
        while len(targets) < 2:
            await asyncio.sleep(0.001)
        third = asyncio.ensure_future(worker.answer(f"{origin}/3"))
        assert (await worker.answer(data_url("image/png", PNG))).outcome == "succeeded", "carried images take no turn"
        await asyncio.sleep(0.1)
        assert targets == ["/1", "/2"]
        worker.cancel("job_2")
        assert (await holding).outcome == "cancelled"
        assert (await third).outcome == "succeeded"
    assert targets == ["/1", "/2", "/3"]


async def test_a_model_without_sight_rejects_the_job_before_anything_is_fetched() -> None:
    targets: list[str] = []
    async with speaking(saying(PNG, IMAGE), targets=targets) as origin, looking(BlindEngine) as worker:
        for url in (f"{origin}/a", data_url("image/png", PNG)):
            result = await worker.answer(url)
            assert result.outcome == "rejected"
            assert result.error is not None
            assert result.error.message == f"messages.0.content.1: {NO_IMAGES}"
    assert targets == []


async def test_sources_and_images_of_one_job_both_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[GenerationRequest] = []

    async def generate(self: EchoEngine, request: GenerationRequest) -> Completion:
        heard.append(request)
        return Completion("x", "stop", 1, 1)

    monkeypatch.setattr(EchoEngine, "generate", generate)
    async with speaking(saying(PNG, IMAGE)) as origin, looking() as worker:
        await worker.answer(f"{origin}/a", sources={"documents": [{"id": "note", "text": "The cat is grey."}]})
    [message] = heard[0].messages
    urls = [part["image_url"]["url"] for part in parts_of(message) if part["type"] == "image_url"]
    assert urls == [data_url("image/png", PNG)]
    assert "The cat is grey." in text_of(message)


async def test_no_log_line_and_no_error_has_the_bytes_of_an_image(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generate(self: EchoEngine, request: GenerationRequest) -> Completion:
        raise RequestRejected("messages", f"cannot read {request.messages}"[:200])

    caplog.set_level("DEBUG")
    monkeypatch.setattr(EchoEngine, "generate", generate)
    async with speaking(saying(PNG, IMAGE)) as origin, looking() as worker:
        await worker.answer(f"{origin}/a", data_url("image/gif", GIF))
    assert "iVBORw0KGgo" not in caplog.text and "R0lGOD" not in caplog.text


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
    async with speaking(DOCUMENT.never) as origin, loading(screen, seconds=0.2) as worker:
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
        "AWS_ENDPOINT_URL_S3": endpoint,
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


@dataclass(frozen=True, slots=True)
class Kind:
    """A part of a job that a worker fetches."""

    working: Callable[..., AbstractAsyncContextManager[Any]]
    named: dict[str, str]
    """The setting for each of most (bytes), seconds and jobs."""
    fine: Script
    begun: bytes
    """The head of an answer, and the first bytes of its body."""
    code: str
    field: str

    def settings(self, **values: float) -> dict[str, float]:
        return {self.named[name]: value for name, value in values.items()}

    async def never(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A script that begins the answer and never ends it."""
        writer.write(self.begun)
        await asyncio.Event().wait()

    async def endless(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A script whose answer has no end."""
        writer.write(self.begun)
        while True:
            writer.write(b"\0" * 65_536)
            await writer.drain()


PICTURE = Kind(
    looking,
    {"most": "image_bytes", "seconds": "image_seconds", "jobs": "image_jobs"},
    saying(PNG, IMAGE),
    b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + PNG,
    "no_image",
    "messages.0.content.1",
)
DOCUMENT = Kind(
    loading,
    {"most": "most_bytes", "seconds": "seconds", "jobs": "jobs"},
    serving(prompt="Why?"),
    b'HTTP/1.1 200 OK\r\n\r\n{"prompt":"',
    "no_payload",
    "payload_url",
)
each_kind = pytest.mark.parametrize("kind", [PICTURE, DOCUMENT], ids=["an image", "a document"])


@each_kind
@pytest.mark.parametrize(
    ("script", "settings", "outcome", "reason"),
    [
        ("unavailable", {}, "failed", "its server answered 503"),
        ("never", {"seconds": 0.2}, "failed", "it took longer than 0.2 s"),
        ("endless", {"most": 1_000_000}, "rejected", "larger than 1000000 bytes"),
    ],
    ids=["a server that keeps failing", "a server that never ends its answer", "an answer without an end"],
)
async def test_a_part_that_cannot_be_fetched_ends_the_job_with_a_reason_that_hides_its_url(
    kind: Kind, script: str, settings: dict[str, float], outcome: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attached, "PAUSES", (0.0, 0.0))
    scripts = {"unavailable": saying(b"", status="503 Service Unavailable"), "never": kind.never}
    async with (
        speaking(scripts.get(script, kind.endless)) as origin,
        kind.working(**kind.settings(**settings)) as worker,
    ):
        result = await worker.answer(f"{origin}/secret/a?token=t0ken")
    assert (result.outcome, result.error.code) == (outcome, kind.code if outcome == "failed" else "invalid_job")
    assert result.error.message.startswith(f"{kind.field}: ") and reason in result.error.message
    assert "secret" not in result.error.message and "t0ken" not in result.error.message


@each_kind
async def test_a_job_that_expires_while_its_part_is_fetched_ends_as_expired(kind: Kind) -> None:
    async with speaking(kind.never) as origin, kind.working(**kind.settings(seconds=600)) as worker:
        async with asyncio.timeout(120):
            result = await worker.answer(f"{origin}/a", ttl_seconds=0.3)
    assert result.outcome == "expired"


@each_kind
async def test_a_job_that_is_cancelled_while_its_part_is_fetched_ends_at_once_and_is_fetched_no_more(
    kind: Kind,
) -> None:
    targets: list[str] = []
    async with (
        speaking(kind.never, targets=targets) as origin,
        kind.working(**kind.settings(seconds=600)) as worker,
        asyncio.timeout(120),
    ):
        result = await worker.cancelled("job_1", worker.answer(f"{origin}/a", job_id="job_1"), targets)
        again = await worker.answer(f"{origin}/a", job_id="job_1")
    assert (result.outcome, again.outcome, len(targets)) == ("cancelled", "cancelled", 1)


@each_kind
async def test_jobs_at_a_server_that_hangs_leave_places_to_the_same_tenants_jobs_at_another_server(kind: Kind) -> None:
    targets: list[str] = []
    async with (
        speaking(kind.never, targets=targets) as hung,
        speaking(kind.fine) as origin,
        kind.working(**kind.settings(jobs=4, seconds=600)) as worker,
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
        assert (await worker.answer(f"{origin}/b")).outcome == "succeeded"


class Renewing:
    """A server's TLS: the server shows an expired certificate in its first handshakes, and then a valid one."""

    def __init__(self, authority: Authority, expired: int) -> None:
        self.handshakes = 0
        self._expired = expired
        self._valid = authority.server()
        self.context = authority.server(authority.chain_file(expired=True))
        self.context.sni_callback = self._begun

    def _begun(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        self.handshakes += 1
        if self.handshakes > self._expired:
            connection.context = self._valid


@each_kind
@pytest.mark.parametrize(
    ("expired", "tries", "ending"),
    [(2, 3, ("succeeded", None)), (9, 3, ("failed", "its certificate was not accepted"))],
    ids=["renewed between the tries", "expired at each try"],
)
async def test_a_server_whose_certificate_has_expired_is_tried_again_until_it_is_renewed(
    kind: Kind,
    expired: int,
    tries: int,
    ending: tuple[str, str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = Authority.create(tmp_path)
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=authority.ca_file))
    monkeypatch.setattr(attached, "PAUSES", (0.0, 0.0))
    server = Renewing(authority, expired)
    async with speaking(kind.fine, tls=server.context) as origin, kind.working() as worker:
        result = await worker.answer(f"{origin}/a")
    said = None if result.error is None else result.error.message.rpartition(": ")[2]
    assert (result.outcome, said, server.handshakes) == (*ending, tries)
