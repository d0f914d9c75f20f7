"""Servers whose answers a test writes byte by byte, and an enricher to read them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network

from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.readers_here import readers_here
from workers.egress import EgressPolicy, Guard
from workers.enrichment.enrich import Enricher
from workers.enrichment.settings import EnrichmentSettings

CLOCK = SystemClock()
LOOPBACK = EgressPolicy(allow=(ip_network("127.0.0.0/8"),))
HTML = "Content-Type: text/html; charset=utf-8"
FACT = "The Halvorsen bridge in Tarnby opened in 1987 and carries the coast road over the river Vesla."
SLOW = b"<article>" + b"<div class=comment-list id=a>" * 900 + b"<p>a</p>" * 150_000
"""A page of a megabyte that takes far longer to read than any reader may take: every paragraph lies 900 deep."""

PATIENT = EnrichmentSettings(robots=False, budget_seconds=120, member_seconds=60)
"""Long limits, since a reader's process takes seconds to start on a busy machine. The worker does not ask for
robots.txt, because a hostile server answers only once."""

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def speaking(
    script: Script,
    robots: bytes | None = None,
    targets: list[str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """Start a server of raw bytes; yields its origin. The script gets each connection after the request's headers.

    `robots`, if given, answers requests for robots.txt without the script. Request targets are added to `targets`.
    With `tls`, the server speaks https.
    """
    running: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if targets is not None:
                targets.append(head.split(b" ")[1].decode("latin-1"))
            is_robots = robots is not None and head.startswith(b"GET /robots.txt ")
            await (saying(robots or b"") if is_robots else script)(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the enricher hung up, or the test is over
        finally:
            writer.close()
            running.discard(task)

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def saying(body: bytes, *headers: str, status: str = "200 OK") -> Script:
    """A script that gives one answer and closes the connection."""

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
        if not any(line.startswith("Content-Length") for line in headers):
            lines.append(f"Content-Length: {len(body)}")
        writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        await writer.drain()

    return script


def page(more: str = "") -> bytes:
    """A page with one fact, followed by `more` markup."""
    return f"<html><head><title>A bridge</title></head><body><p>{FACT}</p>{more}</body></html>".encode()


@asynccontextmanager
async def enriching(
    guard: Guard | None = None, metrics: Metrics | None = None, /, **settings: object
) -> AsyncIterator[Enricher]:
    """An enricher with these settings, and those of `PATIENT` for the rest."""
    values = {**PATIENT.model_dump(), **settings}
    enricher = Enricher(
        EnrichmentSettings.model_validate(values), guard or Guard(LOOPBACK), CLOCK, metrics or Metrics()
    )
    await enricher.start()
    try:
        yield enricher
    finally:
        await enricher.close()


@asynccontextmanager
async def reading_here(
    guard: Guard | None = None, metrics: Metrics | None = None, /, **settings: object
) -> AsyncIterator[Enricher]:
    """Like `enriching`, for tests that are not about the readers' processes: the pages are read in this process."""
    with readers_here():
        async with enriching(guard, metrics, **settings) as enricher:
            yield enricher
