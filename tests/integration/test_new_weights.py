"""New weights for a running vLLM, from the model registry's file: no request is lost or sees mixed weights."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from scripts.play.model import tiny_model
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.lora_adapters import write_adapter
from tests.integration.test_engine_contract import request
from workers.engines.base import EngineDied, EngineRefused
from workers.engines.models.registry_engine import RegistryEngine
from workers.engines.models.registry_file import ModelRegistry, read_registry
from workers.engines.registry import engine_settings
from workers.engines.vllm import weights

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1_200)]

HUNG_SECONDS = 15
QUESTIONS = [f"{'A page that several jobs share. ' * 20}Who wrote book {number}?" for number in range(4)]
LONG = 300


def retrained(folder: Path, seed: int) -> Path:
    """Copy the tiny model with other values in its tensors."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model(), folder)
    torch.manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: 0.02 * torch.randn_like(each) for name, each in tensors.items()}, folder / "model.safetensors")
    return folder


class Served:
    """A registry whose file changes, with a model of vLLM and a model of the echo engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = Metrics()
        self.engine = RegistryEngine(self.file(retrained(folder / "one", 1)), None, SystemClock(), self.metrics)

    def file(self, model: Path, tokens: int = 1024, latency: float = 0, more: str = "") -> ModelRegistry:
        path = self.folder / "models.toml"
        path.write_text(
            f'[engines.here]\nkind = "vllm"\nhung_seconds = {HUNG_SECONDS}\ncontext_tokens = {tokens}\n'
            f'[engines.beside]\nkind = "echo"\nlatency_seconds = {latency}\n'
            f'[models.small]\nengine = "here"\nmodel = "{model}"\n'
            f'[models.other]\nengine = "beside"\n{more}'
        )
        return read_registry(path, engine_settings()())

    async def answers(self, name: str) -> list[str]:
        asked = [request(f"{name}{number}", question, max_tokens=16) for number, question in enumerate(QUESTIONS)]
        return [one.text for one in await asyncio.gather(*map(self.engine.generate, asked))]

    def restarts(self) -> float | None:
        return self.metrics.registry.get_sample_value("postback_engine_restarts_total")


@pytest_asyncio.fixture(loop_scope="module")
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    found = Served(tmp_path)
    await found.engine.start()
    yield found
    await found.engine.close()


def engine_processes() -> list[int]:
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if child.cmdline()[:1] and "postback-" in child.cmdline()[0]]


async def test_a_changed_folder_gives_a_running_engine_new_weights_and_a_broken_one_restarts_it_with_the_old(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, is_paused = weights.load_weights, asyncio.Event()

    async def slow(llm: Any, folder: Path) -> None:
        """Suspend the engine's processes for longer than an engine may be silent.

        A large model takes as long to load.
        """
        is_paused.set()
        for pid in (pids := engine_processes()):
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(HUNG_SECONDS + 2)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        await load(llm, folder)

    first = await served.answers("first")
    with pytest.raises(EngineRefused, match=r"settings of other have changed \(this engine takes new settings only"):
        await served.engine.change(served.file(retrained(served.folder / "zero", 4), latency=1))
    adapters = f'[models.small.adapters]\npolite = "{write_adapter(served.folder / "polite", 8)}"\n'
    with pytest.raises(
        EngineRefused, match="the engine has no room for adapters; restart the worker, with `max_lora_r"
    ):
        await served.engine.change(served.file(served.folder / "one", more=adapters))
    assert await served.answers("beside") == first  # the engine takes over a file whole or not at all
    alone = await served.engine.generate(request("alone", max_tokens=LONG))
    monkeypatch.setattr(weights, "load_weights", slow)
    running = asyncio.create_task(served.engine.generate(request("running", max_tokens=LONG)))
    while served.engine.load().running < 1:
        await asyncio.sleep(0.01)
    changing = asyncio.create_task(served.engine.change(served.file(retrained(served.folder / "two", 2))))
    await asyncio.wait({changing, asyncio.ensure_future(is_paused.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert is_paused.is_set(), changing.result()
    waiting = asyncio.create_task(served.answers("waiting"))
    await changing
    assert (await running).text == alone.text
    second = await served.answers("second")
    assert await waiting == second
    assert all(one != two for one, two in zip(first, second, strict=True))
    assert served.restarts() == 0

    with pytest.raises(EngineRefused, match=r"settings of small have changed \(settings besides the model"):
        await served.engine.change(served.file(served.folder / "two", 512))

    async def vanished(llm: Any, folder: Path) -> None:
        shutil.rmtree(folder)
        await load(llm, folder)

    monkeypatch.setattr(weights, "load_weights", vanished)
    with pytest.raises(EngineRefused, match="failed at the new weights, and the former model is loaded again"):
        await served.engine.change(served.file(retrained(served.folder / "three", 3)))
    with contextlib.suppress(EngineDied):  # the answer may fail until vLLM's client notices the death
        await served.answers("third")
    assert await served.answers("fourth") == second  # the restarted vLLM has read the weights of the folder `two`
    assert served.restarts() == 1
