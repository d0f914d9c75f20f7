"""The HTTP engine sends its requests to a real vLLM server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from scripts.play.model import tiny_model
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.online.scripted import engine_of
from tests.integration.test_engine_contract import busy, request
from workers.engines.address import AddressEngine
from workers.engines.base import Completion, EngineRefused, PromptTooLong, RequestRejected
from workers.engines.openai_http import create
from workers.engines.openai_http.settings import OpenAISettings


@asynccontextmanager
async def vllm_server(log: Path) -> AsyncIterator[str]:
    """`vllm serve` with the tiny model, in its own process group so that all of its processes can be ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_model())]
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--served-model-name", "tiny"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, *options, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        await _healthy(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


async def _healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + 280
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < ends and server.poll() is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.5)
    pytest.fail(f"vLLM's server did not come up:\n{log.read_text()[-3000:]}")


async def _streams(engine: AddressEngine, plain: Completion) -> None:
    """Assert that the streamed answer is the plain one, and that its text was told as it grew."""
    told: list[str] = []
    asked = request()
    asked.on_delta = lambda piece, _: told.append(piece)
    streamed = await engine.complete(asked)
    assert replace(streamed, confidence=None) == replace(plain, confidence=None)
    assert streamed.confidence == pytest.approx(plain.confidence)
    assert "".join(told) == plain.text


@pytest.mark.vllm
@pytest.mark.timeout(400)
async def test_a_real_server_answers_refuses_and_is_aborted(tmp_path: Path) -> None:
    async with vllm_server(tmp_path / "server.log") as url:
        chat = create(OpenAISettings(base_url=url, model="tiny"), Metrics(), SystemClock())
        plain = create(OpenAISettings(base_url=url, model="tiny", api="completions"), Metrics(), SystemClock())
        stranger = create(OpenAISettings(base_url=url, model="another"), Metrics(), SystemClock())
        try:
            for engine in (chat, plain):
                await engine.start()
            async with asyncio.timeout(60):
                while chat.load().free != 256:  # `free` would be 16 if the server reported no counts
                    await asyncio.sleep(0.01)
            for engine in (chat, plain):
                completion = await engine.complete(request())
                assert completion.text
                assert (completion.completion_tokens, completion.finish_reason) == (8, "length")
                assert completion.confidence is not None
                assert 0.0 < completion.confidence < 1.0
                await _streams(engine, completion)
            with pytest.raises(RequestRejected) as rejected:
                await chat.complete(request(max_tokens=5000))
            assert rejected.value.field in ("max_tokens", "prompt", "messages")
            assert (chat.context_tokens, plain.context_tokens) == (512, 512)
            for engine, words in itertools.product((chat, plain), (700, 20_000)):
                with pytest.raises(PromptTooLong):
                    await engine.complete(request(prompt="word " * words, is_whole=True))
            with pytest.raises(
                EngineRefused, match=r"does not list the model another, but tiny, .* 404 to chat/completions"
            ):
                await stranger.start()
            long = request("long", max_tokens=480)
            generating = asyncio.create_task(plain.complete(long))
            await busy(plain, 1)
            long.abort.ask()
            assert (await generating).finish_reason == "abort"
            responses = engine_of("responses", url, model="tiny")
            await responses.start()
            answer = await responses.complete(request())
            await _streams(responses, answer)
            assert (responses.context_tokens, answer.completion_tokens, answer.finish_reason) == (512, 8, "length")
            await responses.close()
        finally:
            for engine in (chat, plain, stranger):
                await engine.close()
