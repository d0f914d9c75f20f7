"""A consumer of callbacks, and delivery handlers that share a keyring, a clock and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from telemetry.metrics import Metrics
from tests.integration.delivery_handler.records import Consumer, JumpingClock, Maker
from workers.delivery.keyring import Keyring


@pytest.fixture
async def consumer() -> AsyncIterator[Consumer]:
    consumer = Consumer()
    application = web.Application()
    application.router.add_post("/{path:.*}", consumer.answer)
    async with TestServer(application) as server:
        consumer.origin = str(server.make_url("/").origin())
        yield consumer
        if consumer.gate is not None:
            consumer.gate.set()
        while consumer.held:
            consumer.held.popleft().set_result(200)


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


@pytest.fixture
def keyring(tmp_path: Path, clock: JumpingClock) -> Keyring:
    return Keyring.create(tmp_path / "keyring.json", clock)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def make(keyring: Keyring, clock: JumpingClock, metrics: Metrics) -> AsyncIterator[Maker]:
    maker = Maker(keyring, clock, metrics)
    yield maker
    for handler in maker.made:
        await handler.close()
