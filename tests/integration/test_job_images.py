"""A job's images by URL: a worker's handler fetches them behind the guard, and gives them to the engine as bytes."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas.images import data_url
from schemas.result import Result
from telemetry.metrics import Metrics
from tests.handlers import inference_handler
from tests.images import GIF, PNG, WEBP, image_part
from tests.integration.certificates import Authority
from tests.integration.fetching_worker import FetchingWorker
from tests.integration.raw_server import CLOCK, LOOPBACK, Script, saying, speaking
from tests.integration.test_job_payloads import loading, serving
from workers.egress import Guard
from workers.engines.base import NO_IMAGES, Completion, GenerationRequest, RequestRejected
from workers.engines.body import parts_of, text_of
from workers.engines.echo import EchoEngine, EchoSettings
from workers.enrichment.enrich import Enricher
from workers.enrichment.fetching import attached
from workers.enrichment.settings import EnrichmentSettings

IMAGE = "Content-Type: image/png"


class BlindEngine(EchoEngine):
    """An echo engine that accepts only text."""

    def takes_images(self, model_id: str | None) -> bool:
        return False


class Worker(FetchingWorker):
    """A handler with a real enricher, whose jobs have images."""

    async def answer(self, *urls: str, text: str = "Describe the image.", **fields: Any) -> Result:
        """The one result of a job with this text and these images."""
        parts = [{"type": "text", "text": text}, *map(image_part, urls)]
        return await self.answered({"messages": [{"role": "user", "content": parts}], **fields})


@asynccontextmanager
async def looking(engine: type[EchoEngine] = EchoEngine, **settings: Any) -> AsyncIterator[Worker]:
    metrics = Metrics()
    values = {"robots": False, "budget_seconds": 120, "member_seconds": 60, "image_seconds": 60.0, **settings}
    enricher = Enricher(EnrichmentSettings.model_validate(values), Guard(LOOPBACK), CLOCK, metrics)
    await enricher.start()
    try:
        yield Worker(inference_handler(engine(EchoSettings(), metrics), enricher, metrics))
    finally:
        await enricher.close()


async def refused(script: Script, **settings: Any) -> Result:
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
    result = await refused(script, image_bytes=4096)
    assert result.outcome == "rejected"
    assert result.error is not None and reason in result.error.message


async def test_an_endless_image_ends_at_the_bound() -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + PNG)
        while True:
            writer.write(b"\0" * 65_536)
            await writer.drain()

    result = await refused(script, image_bytes=1_000_000)
    assert result.outcome == "rejected"


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


async def test_a_server_that_keeps_failing_fails_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attached, "PAUSES", (0.0, 0.0))
    result = await refused(saying(b"", status="503 Service Unavailable"))
    assert result.outcome == "failed"
    assert result.error is not None and result.error.code == "no_image"
    assert result.error.message.endswith("its server answered 503")


async def never(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 9000\r\n\r\n" + PNG)
    await asyncio.Event().wait()


async def test_a_server_that_never_ends_its_image_fails_the_job_at_the_time_of_the_settings() -> None:
    result = await refused(never, image_seconds=0.2)
    assert result.outcome == "failed"
    assert result.error is not None and "it took longer than 0.2 s" in result.error.message


async def test_a_job_that_expires_while_its_image_is_fetched_ends_as_expired() -> None:
    async with speaking(never) as origin, looking(image_seconds=600) as worker, asyncio.timeout(120):
        result = await worker.answer(f"{origin}/a", ttl_seconds=0.3)
    assert result.outcome == "expired"


async def test_a_job_that_is_cancelled_while_its_image_is_fetched_ends_at_once() -> None:
    targets: list[str] = []
    async with (
        speaking(never, targets=targets) as origin,
        looking(image_seconds=600) as worker,
        asyncio.timeout(120),
    ):
        result = await worker.cancelled("job_1", worker.answer(f"{origin}/a", job_id="job_1"), targets)
    assert result.outcome == "cancelled"


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


async def test_jobs_at_a_server_that_hangs_leave_places_to_the_same_tenants_jobs_at_another_server() -> None:
    targets: list[str] = []
    async with (
        speaking(never, targets=targets) as hung,
        speaking(saying(PNG, IMAGE)) as origin,
        looking(image_jobs=4, image_seconds=600) as worker,
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
        assert (await worker.answer(*[f"{origin}/{number}" for number in range(3)])).outcome == "succeeded"


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


# -- servers with an invalid certificate, which they renew ---------------------------------------------------------


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """An authority that the fetcher trusts like an authority of the system."""
    made = Authority.create(tmp_path)
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=made.ca_file))
    monkeypatch.setattr(attached, "PAUSES", (0.0, 0.0))
    return made


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


async def with_image(url: str) -> Result:
    async with looking() as worker:
        return await worker.answer(url)


async def with_payload(url: str) -> Result:
    async with loading() as worker:
        return await worker.answer(url)


KINDS: list[tuple[Callable[[str], Awaitable[Result]], Script, str]] = [
    (with_image, saying(PNG, "Content-Type: image/png"), "no_image"),
    (with_payload, serving(prompt="Why?"), "no_payload"),
]


@pytest.mark.parametrize(("answer", "script", "code"), KINDS, ids=["image", "payload"])
async def test_a_certificate_that_is_renewed_between_the_tries_lets_the_job_be_answered(
    authority: Authority, answer: Callable[[str], Awaitable[Result]], script: Script, code: str
) -> None:
    server = Renewing(authority, expired=2)
    async with speaking(script, tls=server.context) as origin:
        result = await answer(f"{origin}/a")
    assert (result.outcome, server.handshakes) == ("succeeded", 3)


@pytest.mark.parametrize(("answer", "script", "code"), KINDS, ids=["image", "payload"])
async def test_a_certificate_that_stays_expired_fails_the_job_and_is_named(
    authority: Authority, answer: Callable[[str], Awaitable[Result]], script: Script, code: str
) -> None:
    server = Renewing(authority, expired=9)
    async with speaking(script, tls=server.context) as origin:
        result = await answer(f"{origin}/a")
    assert (result.outcome, result.error and result.error.code) == ("failed", code)
    assert result.error is not None and result.error.message.endswith(": its certificate was not accepted")
    assert server.handshakes == len(attached.PAUSES) + 1
