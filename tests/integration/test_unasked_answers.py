"""Servers that say more than they were asked for: it costs them the connection, and us neither memory nor time.

These tests also fail where a new version of aiohttp does not heed `OneAnswerEach`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from certificates import Authority
from test_post import LOOPBACK, OK, Peer, Script, Start, always, failure, on_both_loops, post

from telemetry.clock import SystemClock
from workers.delivery.post import Delivered, FailureReason, Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import Guard
from workers.egress.answers import MOST_INTERIM

LONG = 300.0
"""Longer than a test may hang: no connection ends for having been idle."""
MUCH = 16 * 1024 * 1024
"""More than all buffers between two sockets hold."""
EARLY = b"HTTP/1.1 103 Early Hints\r\n\r\n"


def flooding(flood: bytes) -> Script:
    """Answer the first request, and go on to speak on the idle connection until the other side has enough."""

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(OK)
        await asyncio.sleep(0.05)  # until the answer was read
        for _ in range(MUCH // len(flood)):
            await peer.send(flood)

    return script


def lasting() -> Poster:
    return Poster(DeliverySettings(keep_alive_seconds=LONG), LOOPBACK, SystemClock())


@pytest.mark.parametrize(
    "flood", [OK * 1000, b"x" * 40_000, b"\r\n" * 20_000], ids=["answers", "letters", "empty-lines"]
)
@on_both_loops
async def test_whoever_floods_an_idle_connection_loses_it(start: Start, flood: bytes) -> None:
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
async def test_so_does_whoever_does_it_over_tls(start: Start, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    server = await start(flooding(OK * 1000), authority.server())
    poster = Poster(DeliverySettings(keep_alive_seconds=LONG, ca_file=authority.ca_file), LOOPBACK, SystemClock())
    assert isinstance(await post(poster, server.url), Delivered)
    async with asyncio.timeout(20):
        await asyncio.gather(*server.tasks)
    assert server.client_left.is_set()
    await poster.close()


@on_both_loops
async def test_so_does_whoever_floods_an_idle_connection_that_read_a_page(start: Start) -> None:
    """The sessions that read sources are aiohttp's own, on the same connections."""
    server = await start(flooding(OK * 1000))
    async with Guard(LOOPBACK).session() as session:
        assert await (await session.get(server.url)).text() == "ok"
        async with asyncio.timeout(20):
            await asyncio.gather(*server.tasks)
        assert server.client_left.is_set()


@on_both_loops
async def test_as_many_interim_responses_as_any_server_sends_stand_before_the_answer(
    start: Start, poster: Poster
) -> None:
    server = await start(always(EARLY * MOST_INTERIM + OK))
    for _ in range(2):  # counted for each answer, not for each connection
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


@on_both_loops
async def test_nor_is_a_page_read_behind_them(start: Start) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(EARLY * (MOST_INTERIM + 1) + OK)

    server = await start(script)
    async with Guard(LOOPBACK).session() as session:
        with pytest.raises(aiohttp.ClientResponseError, match="interim"):
            await session.get(server.url)
