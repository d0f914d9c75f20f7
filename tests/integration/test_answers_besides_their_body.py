"""Endless answers outside the body, in chunk extensions, trailers and empty lines: the client hangs up early.

These tests also fail if a new version of aiohttp does not use `OneAnswerEach`.
"""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.integration.one_attempt import Peer, Script, Start, always, failure, on_both_loops, post
from tests.integration.raw_server import CLOCK, LOOPBACK
from workers.delivery.post import Delivered, FailureReason, Poster
from workers.egress import Guard
from workers.egress.answers import MOST_BESIDES
from workers.enrichment.evidence import Unreadable
from workers.enrichment.search.service import ServiceRequest, Web

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
MOST_SENT = 16 * MOST_BESIDES
"""Number of bytes: far more than the client reads and the sockets' buffers hold together."""
FLOODS = {
    "empty-lines-before-the-status": (b"", b"\r\n" * 8192),
    "one-chunk-extension": (CHUNKED + b"2;", b"x" * 16_384),
    "chunk-extensions": (CHUNKED, b"1;" + b"x" * 4000 + b"\r\na\r\n"),
    "one-trailer": (CHUNKED + b"2\r\nok\r\n0\r\nx: ", b"y" * 16_384),
    "trailers": (CHUNKED + b"2\r\nok\r\n0\r\n", b"x: y\r\n" * 2000),
}
floods = pytest.mark.parametrize(("start_of_answer", "flood"), FLOODS.values(), ids=FLOODS)


def flooding(start_of_answer: bytes, flood: bytes) -> Script:
    """Begin an answer and go on until the other side hangs up."""

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(start_of_answer)
        for _ in range(MOST_SENT // len(flood)):
            await peer.send(flood)
        await asyncio.Event().wait()

    return script


@floods
@on_both_loops
async def test_a_callback_s_answer_without_end_is_a_failure(
    start: Start, poster: Poster, start_of_answer: bytes, flood: bytes
) -> None:
    server = await start(flooding(start_of_answer, flood))
    assert failure(await post(poster, server.url))[0] in (FailureReason.BAD_RESPONSE, FailureReason.CONNECTION_CLOSED)
    server.script = always(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    assert isinstance(await post(poster, server.url), Delivered)


@floods
@on_both_loops
async def test_a_source_s_answer_without_end_breaks_off(start: Start, start_of_answer: bytes, flood: bytes) -> None:
    server = await start(flooding(start_of_answer, flood))
    async with asyncio.timeout(20), Guard(LOOPBACK).session() as session:
        with pytest.raises((aiohttp.ClientError, OSError)):
            await (await session.get(server.url)).read()


@floods
@on_both_loops
async def test_a_search_service_s_answer_without_end_breaks_off(
    start: Start, start_of_answer: bytes, flood: bytes
) -> None:
    server = await start(flooding(start_of_answer, flood))
    web = Web("tests", CLOCK)
    await web.start()
    try:
        async with asyncio.timeout(20):
            with pytest.raises(Unreadable):
                await web.send(ServiceRequest(server.url))
    finally:
        await web.close()


@on_both_loops
async def test_a_page_in_chunks_of_one_byte_is_read(start: Start) -> None:
    """The framing is five times as large as the page."""
    size = 2 * MOST_BESIDES

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(CHUNKED)
        for _ in range(size // 1024):
            await peer.send(b"1\r\na\r\n" * 1024)
        await peer.send(b"0\r\n\r\n")

    server = await start(script)
    async with Guard(LOOPBACK).session() as session:
        assert len(await (await session.get(server.url)).read()) == size
