"""The door looks at its certificates each second."""

from __future__ import annotations

import asyncio
import socket

import pytest
from starlette.applications import Starlette

from gateway.door.server import DoorServer
from gateway.door.settings import GatewaySettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics


async def test_a_look_at_the_certificates_that_fails_is_logged_once_a_minute_and_the_door_looks_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The task that looks at the certificates also ends slow connections, so a failed look must not end the task."""
    looked = asyncio.Event()
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            looked.set()
        raise ValueError("a certificate of the year 10000")

    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = DoorServer(Starlette(), bound, None, GatewaySettings(), SystemClock(), Metrics(), look)
        watch = asyncio.create_task(server._watch(0.001))
        async with asyncio.timeout(60):
            await asyncio.wait({watch, asyncio.create_task(looked.wait())}, return_when=asyncio.FIRST_COMPLETED)
        assert not watch.done()
        watch.cancel()
    assert caplog.text.count("certificates-reload-failed") == 1
