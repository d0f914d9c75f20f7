"""Hostile servers, each a real one on loopback.

One enricher reads the pages of all servers. Beside each hostile page, the enricher must read an ordinary page for
another job as usual. The hostile read ends within its budget and in bounded memory. The note about the page gives a
reason, and of the page's URL only the origin.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import re
import struct
import zlib
from contextlib import AsyncExitStack
from dataclasses import dataclass
from socket import SO_LINGER, SOL_SOCKET

import brotli
import pytest

from schemas.outcome import Outcome
from scripts.play.site import Site
from tests.integration.answering_worker import AnsweringWorker
from tests.integration.hostile.reading import GROWTH_BYTES, QUESTION, enriched, measured, moved
from tests.integration.raw_server import CLOCK, HTML, SLOW, Script, page, saying, speaking
from workers.enrichment.enrich import Enricher
from workers.enrichment.settings import EnrichmentSettings

LATE_SECONDS = 1.0
_KILLED = GROWTH_BYTES + EnrichmentSettings().member_bytes
"""Upper bound for a page whose reader is killed: the faster the machine, the nearer the reader comes to its limit."""
JOB_GROWTH_BYTES = GROWTH_BYTES + EnrichmentSettings().members * EnrichmentSettings().member_bytes
"""Upper bound for a job whose pages may end all readers of a worker."""
"""Upper bound for a whole job of hostile pages, which three readers read."""
HARD_LIMIT_SECONDS = 60.0

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class Case:
    """A server, and a pattern that the reason for omitting its page has to match."""

    script: Script
    why: str
    budget_seconds: float = 20.0
    growth_bytes: int = GROWTH_BYTES


def late(script: Script) -> Case:
    """A case of a server that never ends its answer: the job's budget ends the read."""
    return Case(script, "it was late", LATE_SECONDS)


def bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(b"a" * 2**20) for _ in range(megabytes)) + packer.flush()


def beginning(start: str, again: bytes, pause_seconds: float = 0.0) -> Script:
    """An answer with this start, followed by endless repeats of `again`."""

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start.encode())
        while True:
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(pause_seconds)

    return script


def chunks(*parts: bytes) -> Script:
    """A chunked answer of these raw parts: each part contains its own framing, right or wrong."""

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED.encode())
        for part in parts:
            writer.write(part)
            await writer.drain()

    return script


def in_single_bytes(body: bytes) -> Script:
    parts = [body[at : at + 4096] for at in range(0, len(body), 4096)]
    return chunks(*[b"".join(b"1\r\n%c\r\n" % byte for byte in part) for part in parts], b"0\r\n\r\n")


async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(HARD_LIMIT_SECONDS)


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"HTTP/1.1 200 OK\r\n{HTML}\r\nContent-Length: 5000\r\n\r\nhalf".encode())
    await writer.drain()
    writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def ever_elsewhere() -> Script:
    numbers = itertools.count()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(b"", f"Location: /{next(numbers)}", status="307 Temporary Redirect")(reader, writer)

    return script


def nonsense(data: bytes) -> Script:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return script


HEAD = f"HTTP/1.1 200 OK\r\n{HTML}\r\n"
CHUNKED = f"{HEAD}Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nContent-Length: 99\r\n\r\n" + page()

LONG = {
    "gzip bomb": saying(bomb(300), HTML, "Content-Encoding: gzip"),
    "brotli bomb": saying(brotli.compress(b"a" * 2**27, quality=1), HTML, "Content-Encoding: br"),
    "endless chunked body": beginning(CHUNKED, b"10000\r\n" + b"a" * 0x10000 + b"\r\n"),
}
"""Servers whose pages do not end within the size that is read."""
NOT_HTTP = "is not HTTP, or exceeds the worker's limits"
BROKEN = "ended early or could not be decoded"
REDIRECTS = {
    "redirect to a metadata address": (
        "http://169.254.169.254/latest/meta-data/",
        "http://169.254.169.254: the address",
    ),
    "redirect to a metadata address in IPv6": ("http://[::ffff:169.254.169.254]/", "not public"),
    "redirect to file:": ("file:///etc/passwd", "file:: https is required"),
    "redirect to gopher:": ("gopher://127.0.0.1/", "https is required"),
    "redirect to data:": ("data:text/html,x", "https is required"),
    "redirect with a password": ("http://user:pass@127.0.0.1/", "user information"),
    "redirect to nonsense": ("http://[", "not a URL that can be read"),
    "redirect to empty brackets": ("https://a[]@/", "not a URL that can be read"),
    "redirect to brackets that are not closed": ("//[", "not a URL that can be read"),
    "redirect to no port": ("https://1.1.1.1:x/", "not a URL that can be read"),
    "redirect to a decimal IP": ("http://2852039166/", "spelling"),
    "redirect to an octal IP": ("http://0251.0376.0251.0376/", "spelling"),
    "redirect to a hexadecimal IP": ("http://0xa9fea9fe/", "spelling"),
    "redirect to a short IP": ("http://127.1/", "spelling"),
    "redirect to an IP in full-width digits": ("http://１６９.254.169.254/".encode().decode("latin-1"), "not public"),  # noqa: RUF001
    "redirect to another port of a public address": ("https://1.1.1.1:22/", "port"),
    "redirect to localhost of another spelling": (
        "http://foo.localhost./",
        "its name was not found|could not be reached",
    ),
}

CASES = {
    "gzip twice": Case(saying(gzip.compress(gzip.compress(page())), HTML, "Content-Encoding: gzip"), "gzip data"),
    "one header byte a second": late(beginning("HTTP/1.1 200 OK\r\nX-", b"a", 0.2)),
    "one body byte a second": late(beginning(f"{HEAD}Content-Length: 999\r\n\r\n", b"a", 0.2)),
    "a 20 MB header": Case(saying(page(), "X-Large: " + "a" * 20_000_000), NOT_HTTP),
    "200,000 headers": Case(saying(page(), *[f"X-{n}: 1" for n in range(200_000)]), NOT_HTTP),
    "Content-Length longer than the body": Case(saying(page(), HTML, "Content-Length: 100000"), BROKEN),
    **{name: Case(moved(location), why) for name, (location, why) in REDIRECTS.items()},
    "redirect loop": Case(moved("/again"), "more than 5 times"),
    "text/html that is a PDF": Case(saying(b"%PDF-1.7\n%...", HTML), "PDF"),
    "text/html that is a ZIP": Case(saying(b"PK\x03\x04...", HTML), "a ZIP archive"),
    "100,000 nested tags": Case(saying(b"<div>" * 100_000 + page(), HTML), "nest more than"),
    "6 MB of short paragraphs": Case(
        saying(b"<p>short" * 750_000, HTML),
        "reading it took more than|reading it needed more memory",
        growth_bytes=_KILLED,
    ),
    "2 MB in chunks of one byte": Case(in_single_bytes(b"a" * 500_000 + b"\0" * 20_000), "binary data"),
    "endless early hints": Case(beginning("", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", 0.001), NOT_HTTP),
    "endless trailers": Case(beginning(f"{CHUNKED}1\r\na\r\n0\r\n", b"X-Trailer: 1\r\n" * 100), BROKEN),
    "an endless chunk extension": Case(beginning(f"{CHUNKED}5;", b"x" * 0x10000), BROKEN),
    "a chunk of 16 exabytes": Case(chunks(b"FFFFFFFFFFFFFFFF\r\n" + page()), f"{BROKEN}|{NOT_HTTP}"),
    "a chunk of negative size": Case(chunks(b"-5\r\n" + page()), BROKEN),
    "two lengths": Case(nonsense(SMUGGLED), NOT_HTTP),
    "a million empty gzip members": Case(saying(gzip.compress(b"") * 100_000, HTML, "Content-Encoding: gzip"), BROKEN),
    "gzip that is none": Case(saying(page(), HTML, "Content-Encoding: gzip"), BROKEN),
    "silence": late(silent),
    "a reset in the middle": Case(reset, f"{BROKEN}|closed the connection"),
    "redirects to ever new places": Case(ever_elsewhere(), "more than 5 times"),
    "nonsense for headers": Case(saying(page(), "no header at all", "\x00: \x01"), NOT_HTTP),
    "another protocol": Case(nonsense(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), NOT_HTTP),
    "a page that takes too long to read": Case(saying(SLOW, HTML), "reading it took more than", growth_bytes=_KILLED),
    "an element with 200,000 attributes": Case(
        saying(b"<p " + b" ".join(b"a%d=1" % n for n in range(200_000)) + b"></p>", HTML),
        "reading it took more than",
    ),
    "JSON of 100,000 brackets": Case(saying(b"[" * 100_000, "Content-Type: application/json"), "its content is not"),
    "a page of NULs": Case(saying(b"\0" * 1_000_000, HTML), "binary data"),
}

LONG_GROWTH_BYTES = 256 * 1024 * 1024
"""Less than the bomb's decompressed 300 MiB. Beside the long page, a second reader may start for the other job."""


@pytest.mark.parametrize("name", CASES)
async def test_a_hostile_server_ends_in_a_reason_and_affects_no_other_job(
    name: str, enricher: Enricher, site: Site
) -> None:
    case = CASES[name]
    await enriched(enricher, site.url("/bridge?warm"))
    async with speaking(case.script) as origin, measured() as growth, asyncio.timeout(HARD_LIMIT_SECONDS):
        hostile, fine = await asyncio.gather(
            enriched(enricher, f"{origin}/secret/path?token=1", case.budget_seconds),
            enriched(enricher, site.url(f"/bridge?{CLOCK.monotonic()}")),
        )
    (note,) = hostile.notes
    assert hostile.sources == ()
    assert re.search(case.why, note), note
    assert not any(part in note for part in ("secret", "token", "passwd", "pass@"))
    assert "1987" in " ".join(fine.sources[0].passages)
    assert growth.peak_bytes < case.growth_bytes


@pytest.mark.parametrize("name", LONG)
async def test_a_page_without_end_is_read_up_to_a_size_and_affects_no_other_job(
    name: str, enricher: Enricher, site: Site
) -> None:
    await enriched(enricher, site.url("/bridge?warm"))
    async with speaking(LONG[name]) as origin, measured() as growth, asyncio.timeout(HARD_LIMIT_SECONDS):
        long, fine = await asyncio.gather(
            enriched(enricher, f"{origin}/secret/path?token=1"),
            enriched(enricher, site.url(f"/bridge?{CLOCK.monotonic()}")),
        )
    assert (len(long.sources), long.notes) == (1, ())
    assert "1987" in " ".join(fine.sources[0].passages)
    assert growth.peak_bytes < LONG_GROWTH_BYTES


ROBOTS = b"User-agent: *\nDisallow: /private\n"
JOBS = 3


@pytest.mark.parametrize("number", range(JOBS))
async def test_a_job_with_only_hostile_pages_ends_with_a_reason_for_each_and_another_job_is_answered(
    number: int, site: Site
) -> None:
    """The worker has its default settings. The test checks each result in the form in which its reader sees it."""
    cases = [CASES[name] for name in list(CASES)[number::JOBS]]
    async with AnsweringWorker(enrichment=EnrichmentSettings(), confined=True) as worker, AsyncExitStack() as servers:
        origins = [await servers.enter_async_context(speaking(case.script, ROBOTS)) for case in cases]
        async with measured() as growth, asyncio.timeout(HARD_LIMIT_SECONDS):
            hostile, fine = await asyncio.gather(
                worker.answer(QUESTION, *(f"{origin}/secret/path?token=1" for origin in origins)),
                worker.answer(QUESTION, site.url(f"/bridge?{number}")),
            )
    assert (hostile.outcome, hostile.sources) == (Outcome.SUCCEEDED, [])
    *reasons, last = hostile.notes
    assert last == "the answer rests on no source: no source could be used"
    assert len(reasons) == len(cases)
    for position, (case, origin) in enumerate(zip(cases, origins, strict=True), start=1):
        (note,) = [note for note in reasons if note.startswith(f"source {position} ({origin})")]
        assert re.search(f"{case.why}|it was late", note), note
        assert not any(part in note for part in ("secret", "token", "passwd", "pass@"))
    assert sum("it was late" in note for note in hostile.notes) <= len(cases) // 2
    assert fine.sources == [site.url(f"/bridge?{number}")]
    assert "1987" in (fine.text or "")
    assert growth.peak_bytes < JOB_GROWTH_BYTES
