"""Connections under steady traffic end by age, since they are never idle."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.integration.one_attempt import LOOPBACK, OK, Start, always, on_both_loops, post
from tests.integration.test_egress_sockets import Names, serving
from workers.delivery.post import Delivered, Poster
from workers.egress import GuardedConnector, answers


@pytest.fixture
def short_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "OLDEST_SECONDS", 0.2)


@pytest.mark.usefixtures("short_lived")
@on_both_loops
async def test_callbacks_move_from_an_old_connection_to_a_new_one_and_none_fails(start: Start, poster: Poster) -> None:
    server = await start(always(OK))
    async with asyncio.timeout(20):
        while server.connections < 3:
            assert isinstance(await post(poster, server.url), Delivered)
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("short_lived")
async def test_a_name_that_moves_is_followed_although_its_connection_is_never_idle() -> None:
    async with serving("127.0.0.1") as former, serving("127.0.0.2", former.port) as latter:
        # The cache is off, because aiohttp would keep the first DNS answer for ten seconds.
        connector = GuardedConnector(LOOPBACK, Names([former.host], [latter.host]), use_dns_cache=False)
        async with aiohttp.ClientSession(connector=connector) as session, asyncio.timeout(20):
            while not latter.paths:
                async with session.get(former.url("moves.example")) as answer:
                    await answer.read()
                await asyncio.sleep(0.01)
        assert (len(former.connections), len(latter.connections)) == (1, 1)
