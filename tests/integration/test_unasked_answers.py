"""Servers that say more than they were asked for: it costs them the connection, and us neither memory nor time.

These tests also fail where a new version of aiohttp does not heed `OneAnswerEach`.
"""

from __future__ import annotations

import asyncio

import pytest
from test_post import LOOPBACK, OK, Peer, Script, Start, always, on_both_loops, post

from telemetry.clock import SystemClock
from workers.delivery.post import Delivered, Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import Guard

LONG = 300.0
"""Longer than a test may hang: no connection ends for having been idle."""
MUCH = 16 * 1024 * 1024
"""More than all buffers between two sockets hold."""


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
async def test_so_does_whoever_floods_an_idle_connection_that_read_a_page(start: Start) -> None:
    """The sessions that read sources are aiohttp's own, on the same connections."""
    server = await start(flooding(OK * 1000))
    async with Guard(LOOPBACK).session() as session:
        assert await (await session.get(server.url)).text() == "ok"
        async with asyncio.timeout(20):
            await asyncio.gather(*server.tasks)
        assert server.client_left.is_set()
