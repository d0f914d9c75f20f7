"""A running vLLM gets and loses LoRA adapters as the model registry's file changes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from scripts.play.model import tiny_model
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.integration.lora_adapters import write_adapter
from tests.integration.test_engine_contract import request
from tests.integration.test_new_weights import engine_processes
from workers.engines.base import EngineAway, EngineRefused, RequestRejected
from workers.engines.models.registry_engine import RegistryEngine
from workers.engines.models.registry_file import ModelRegistry, read_registry
from workers.engines.registry import engine_settings

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(1_200)]

QUESTIONS = [f"{'A page that several jobs share. ' * 20}Who wrote book {number}?" for number in range(3)]
LONG = 300


class Served:
    """A registry with the tiny model in vLLM, whose file names adapters by folder."""

    def __init__(self, folder: Path, **adapters: Path) -> None:
        self.folder = folder
        self.engine = RegistryEngine(self.file(**adapters), None, SystemClock(), Metrics())

    def file(self, **adapters: Path) -> ModelRegistry:
        path = self.folder / "models.toml"
        path.write_text(
            '[engines.here]\nkind = "vllm"\ncontext_tokens = 1024\nextra = { max_lora_rank = 24, max_loras = 2 }\n'
            f'[models.small]\nengine = "here"\nmodel = "{tiny_model()}"\n[models.small.adapters]\n'
            + "".join(f'{name} = "{folder}"\n' for name, folder in adapters.items())
        )
        return read_registry(path, engine_settings()())

    async def change(self, **adapters: Path) -> None:
        await self.engine.change(self.file(**adapters))

    async def answers(self, adapter: str | None, tokens: int = 16) -> list[str]:
        return [
            (await self.engine.generate(request(f"{adapter}{n}", question, max_tokens=tokens, adapter=adapter))).text
            for n, question in enumerate(QUESTIONS)
        ]

    async def long(self, adapter: str | None) -> str:
        return (await self.engine.generate(request("long", max_tokens=LONG, adapter=adapter))).text

    async def running(self, adapter: str | None) -> asyncio.Task[str]:
        """Begin a long job with this adapter, and return it once it runs."""
        task = asyncio.create_task(self.long(adapter))
        async with asyncio.timeout(60):
            while self.engine.load().running < 1:
                await asyncio.sleep(0.01)
        return task


@pytest_asyncio.fixture(loop_scope="module")
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    polite = write_adapter(tmp_path / "polite", 8)
    found = Served(tmp_path, polite=polite)
    await found.engine.start()
    yield found
    await found.engine.close()


async def test_adapters_come_change_and_go_while_jobs_run(served: Served) -> None:
    folder = served.folder
    polite, base, first = folder / "polite", await served.answers(None), await served.answers("polite")
    alone = await served.long("polite")

    wide = write_adapter(folder / "wide", 24)
    running = await served.running("polite")
    await served.change(polite=polite, wide=wide)
    assert not running.done()
    assert [*served.engine.adapters] == ["polite", "wide"]
    second = await served.answers("wide")
    assert await running == alone
    assert all(len({*answers}) == 3 for answers in zip(base, first, second, strict=True))

    # A running job keeps its adapter's version. Later jobs use the new folder, and no prefix that vLLM cached with the
    # old one.
    changed = write_adapter(folder / "changed", 8, seed=5)
    running = await served.running("polite")
    await served.change(polite=changed, wide=wide, same=changed)
    shutil.rmtree(polite)
    third = await served.answers("polite")
    assert not running.done()
    assert await running == alone
    assert third == await served.answers("same")
    assert all(len({*answers}) == 4 for answers in zip(base, first, second, third, strict=True))

    running = await served.running("wide")
    await served.change(polite=changed)
    with pytest.raises(RequestRejected, match="adapter: this engine has no adapter of this name"):
        await served.answers("wide")
    assert [*served.engine.adapters] == ["polite"]
    await running
    assert await served.answers(None) == base
    assert await served.answers("polite") == third

    await refuses_broken_folders(served, changed)
    assert [*served.engine.adapters] == ["polite"]
    assert await served.answers("polite") == third
    assert await served.answers(None) == base

    await waits_for_a_dead_engine(served, polite=changed, late=wide)
    assert await served.answers("polite") == third  # the restarted vLLM has loaded the adapters of the last file
    await served.change(polite=changed, late=wide)
    assert await served.answers("late") == second


async def refuses_broken_folders(served: Served, changed: Path) -> None:
    """Each folder that is no adapter of the model is refused, with the reason and without the path."""
    folder = served.folder
    shutil.copytree(changed, folder / "weightless")
    (folder / "weightless" / "adapter_model.safetensors").unlink()
    for name, why in {
        "missing": "the adapter new cannot be loaded: its folder does not exist, or may not be read; mend its folder",
        "weightless": "the adapter new cannot be loaded: .*; mend its folder, and save the file again",
        "dora": "the adapter new cannot be loaded: .*DoRA.*; mend its folder, and save the file again",
        "small": "it was trained for another model: its layer model.layers.0.self_attn.q_proj has 64 values, and the m",
        "large": "its rank is 40, and the engine has room for 32; restart the worker, with a larger `max_lora_rank`",
    }.items():
        if name in ("dora", "small", "large"):
            rank, width = (40, 128) if name == "large" else (8, 64 if name == "small" else 128)
            write_adapter(folder / name, rank, width=width, use_dora=name == "dora")
        with pytest.raises(EngineRefused, match=why) as refused:
            await served.change(polite=changed, new=folder / name)
        assert str(folder) not in str(refused.value)


async def waits_for_a_dead_engine(served: Served, **adapters: Path) -> None:
    """A registry's file that changes while vLLM's processes are dead is refused until they are back."""
    for pid in engine_processes():
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while served.engine.load().away is None:
            await asyncio.sleep(0.05)
    with pytest.raises(EngineAway, match="small: the engine is away"):
        await served.change(**adapters)
