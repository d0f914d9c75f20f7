"""`postback status` against a door on a real socket, whose jobs no worker answers."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.door.server import DoorServer
from gateway.door.settings import GatewaySettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.postback_command import environment_of, postback_here
from tests.unit.gateway_rig import Rig, gateway_rig


@contextmanager
def served(rig: Rig) -> Iterator[str]:
    """The rig's application on a free port."""
    bound = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = DoorServer(rig.app, bound, None, GatewaySettings(), SystemClock(), Metrics())
    serving = asyncio.run_coroutine_threadsafe(server.ended(), loop)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        serving.cancel()
        asyncio.run_coroutine_threadsafe(_others_ended(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _others_ended() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with gateway_rig(tmp_path) as made:
        yield made


def test_the_state_of_each_job_is_shown_and_an_unknown_job_is_reported(rig: Rig) -> None:
    with served(rig) as url:
        env = environment_of(POSTBACK_GATEWAY_KEY=rig.key())
        ids = postback_here("submit", "-", "--gateway", url, env=env, given='{"prompt": "a"}\n{"prompt": "b"}\n')
        first, second = ids.stdout.split()
        assert postback_here("cancel", second, "--gateway", url, env=env).returncode == 0

        shown = postback_here("status", second, first, "--gateway", url, env=env)
        assert (shown.returncode, shown.stdout.splitlines()) == (0, [f"{second}  cancelling", f"{first}  queued"])
        listed = postback_here("status", "--ids", "-", "--json", "--gateway", url, env=env, given=f"{first}\nno-such\n")
        assert (listed.returncode, json.loads(listed.stdout)) == (1, {"id": first, "status": "queued"})
        assert "no-such" in listed.stderr

        another = environment_of(POSTBACK_GATEWAY_KEY=rig.key("another"))
        foreign = postback_here("status", first, "--gateway", url, env=another)
        assert (foreign.returncode, foreign.stdout) == (1, "")
