"""A server that sends more than the client asked for loses the connection, and costs us neither memory nor time.

These tests also fail if a new version of aiohttp does not use `OneAnswerEach`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from telemetry.clock import SystemClock
from tests.integration.certificates import Authority
from tests.integration.one_attempt import (
    LOOPBACK,
    OK,
    Peer,
    Script,
    Start,
    always,
    failure,
    on_both_loops,
    post,
    status,
)
from workers.delivery.post import Delivered, FailureReason, Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import Guard
from workers.egress.answers import MOST_INTERIM
from workers.engines.openai_http.server import new_session

LONG = 300.0
"""Idle timeout in seconds: longer than a test may run, so that this timeout ends no connection."""
MUCH = 16 * 1024 * 1024
"""Number of bytes: more than all buffers between two sockets hold."""
EARLY = b"HTTP/1.1 103 Early Hints\r\n\r\n"

SessionOf = Callable[[], aiohttp.ClientSession]
SESSIONS = pytest.mark.parametrize(
    "session_of", [Guard(LOOPBACK).session, lambda: new_session({}, 1)], ids=["of-sources", "of-engines"]
)
"""aiohttp sessions, which read sources and ask engines' servers, use delivery's connection class."""


def flooding(flood: bytes) -> Script:
    """Answer the first request, then keep sending on the idle connection until the other side hangs up."""

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(OK)
        await asyncio.sleep(0.05)  # waits until the client has read the answer
        for _ in range(MUCH // len(flood)):
            await peer.send(flood)

    return script


def lasting() -> Poster:
    return Poster(DeliverySettings(keep_alive_seconds=LONG), LOOPBACK, SystemClock())


@pytest.mark.parametrize(
    "flood", [OK * 1000, b"x" * 40_000, b"\r\n" * 20_000], ids=["answers", "letters", "empty-lines"]
)
@on_both_loops
async def test_a_flood_on_an_idle_connection_ends_it(start: Start, flood: bytes) -> None:
    server, poster = await start(flooding(flood)), lasting()
    assert isinstance(await post(poster, server.url), Delivered)
    async with asyncio.timeout(20):
        await asyncio.gather(*server.tasks)
    assert server.client_left.is_set()
    server.script = always(OK)
    assert isinstance(await post(poster, server.url), Delivered)
    assert server.connections == 2
    await poster.close()


@on_both_loops
async def test_a_flood_on_an_idle_tls_connection_ends_it(start: Start, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    server = await start(flooding(OK * 1000), authority.server())
    poster = Poster(DeliverySettings(keep_alive_seconds=LONG, ca_file=authority.ca_file), LOOPBACK, SystemClock())
    assert isinstance(await post(poster, server.url), Delivered)
    async with asyncio.timeout(20):
        await asyncio.gather(*server.tasks)
    assert server.client_left.is_set()
    await poster.close()


@SESSIONS
@on_both_loops
async def test_a_flood_on_an_idle_connection_of_a_session_ends_it(start: Start, session_of: SessionOf) -> None:
    server = await start(flooding(OK * 1000))
    async with session_of() as session:
        assert await (await session.get(server.url)).text() == "ok"
        async with asyncio.timeout(20):
            await asyncio.gather(*server.tasks)
        assert server.client_left.is_set()


def answer_of(head: str, rest: str) -> bytes:
    return f"HTTP/1.1 {head}\r\n\r\n{rest}".encode()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (answer_of("204 No Content\r\nContent-Length: 2", "OK"), 204),
        (answer_of("204 No Content", "<html>fine</html>"), 204),
        (answer_of("204 No Content\r\nTransfer-Encoding: chunked", "0\r\n\r\n"), 204),
        (answer_of("200 OK\r\nContent-Length: 2", "OK, thanks\r\n"), 200),
        (answer_of("200 OK\r\nContent-Length: 0", "OK"), 200),
        (EARLY + answer_of("202 Accepted\r\nContent-Length: 0", "OK"), 202),
        (answer_of("410 Gone\r\nContent-Length: 2", "no, thanks"), 410),
    ],
)
@on_both_loops
async def test_an_answer_with_extra_bytes_counts_and_is_the_last_of_its_connection(
    start: Start, poster: Poster, answer: bytes, code: int
) -> None:
    """Well-meaning programs write a body after a 204, or give a body's length in characters instead of bytes."""
    server = await start(always(answer))
    for count in (1, 2):
        assert (await post(poster, server.url)).status == code
        assert (len(server.requests), server.connections) == (count, count)


@on_both_loops
async def test_an_answer_whose_head_comes_in_pieces_is_read(start: Start, poster: Poster) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        for piece in (b"HTTP/1.1 200 OK\r", b"\nContent-Le", b"ngth: 4\r\n\r", b"\nfi", b"ne"):
            await peer.send(piece)
            await asyncio.sleep(0.02)

    server = await start(script)
    assert isinstance(await post(poster, server.url), Delivered)


@on_both_loops
async def test_a_usual_number_of_interim_responses_may_precede_the_answer(start: Start, poster: Poster) -> None:
    server = await start(always(EARLY * MOST_INTERIM + OK))
    for _ in range(2):  # the limit applies to each answer, not to each connection
        assert isinstance(await post(poster, server.url), Delivered)
    assert server.connections == 1


@pytest.mark.parametrize("at_once", [1, 10_000])
@on_both_loops
async def test_interim_responses_without_end_are_no_answer(start: Start, poster: Poster, at_once: int) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        for _ in range(MUCH // len(EARLY) // at_once):
            await peer.send(EARLY * at_once)
            await asyncio.sleep(0)
        await peer.send(OK)

    server = await start(script)
    assert failure(await post(poster, server.url)) == (FailureReason.BAD_RESPONSE, None)
    async with asyncio.timeout(20):
        await asyncio.gather(*server.tasks)
    assert server.client_left.is_set()


@SESSIONS
@on_both_loops
async def test_a_session_reads_no_answer_after_endless_interim_responses(start: Start, session_of: SessionOf) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(EARLY * (MOST_INTERIM + 1) + OK)

    server = await start(script)
    async with session_of() as session:
        with pytest.raises(aiohttp.ClientResponseError, match="interim"):
            await session.get(server.url)


@pytest.mark.parametrize("unasked", [OK, status(408, "connection: close")], ids=["200", "408"])
@on_both_loops
async def test_bytes_on_an_idle_tls_connection_do_not_answer_the_next_callback(
    start: Start, tmp_path: Path, unasked: bytes
) -> None:
    said = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK if peer.number == 1 else status(503))
        await asyncio.sleep(0.05)  # lets the client read the answer before the unasked bytes
        await peer.send(unasked)
        said.set()
        await peer.request()

    authority = Authority.create(tmp_path)
    server = await start(script, authority.server())
    poster = Poster(DeliverySettings(keep_alive_seconds=LONG, ca_file=authority.ca_file), LOOPBACK, SystemClock())
    outcomes = [await post(poster, server.url)]
    await said.wait()
    await asyncio.sleep(0.05)  # lets the client, which shares this loop, get the bytes
    outcomes.append(await post(poster, server.url))
    await poster.close()
    assert [outcome.status for outcome in outcomes] == [200, 503]
    assert (len(server.requests), server.connections) == (2, 2)
