"""vLLM during its load: failures, a stop of the worker, and an engine that cannot be loaded again."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from scripts.play.model import tiny_model
from telemetry.metrics import Metrics
from tests.integration.test_engine_contract import request
from workers.engines.base import EngineDied, EngineLost, EngineRefused
from workers.engines.vllm import VllmEngine, loading
from workers.engines.vllm.guardian import Guardian, marked
from workers.engines.vllm.settings import VllmSettings

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(1_200)]


async def test_a_model_that_cannot_be_loaded_fails_the_start_and_leaves_nothing_behind(tmp_path: Path) -> None:
    guardian = Guardian()
    engine = VllmEngine(VllmSettings(model=str(tmp_path)), Metrics(), guardian)
    with pytest.raises(EngineRefused, match=r"there is no model .* a folder with a config\.json"):
        await engine.start()
    assert guardian.pid is None
    assert marked(guardian.mark) == []


async def test_an_engine_that_is_stopped_while_it_loads_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The cache is empty, so that a process inspects the model's class.
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    guardian = Guardian()
    engine = VllmEngine(VllmSettings(model=str(tiny_model())), Metrics(), guardian)
    starting = asyncio.create_task(engine.start())
    async with asyncio.timeout(250):
        while not marked(guardian.mark):
            await asyncio.sleep(0.1)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert guardian.pid is None
    assert marked(guardian.mark) == []
    assert logging.getLogger("vllm").isEnabledFor(logging.WARNING), "warnings of other engines are no longer logged"

    later = VllmEngine(VllmSettings(model=str(tiny_model())), Metrics())
    await later.start()
    await later.close()


async def test_an_engine_that_ran_out_of_memory_and_cannot_be_loaded_again_is_lost_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an earlier version, each waiting job's next try began another load, without a pause or an end."""
    monkeypatch.setattr(loading, "FIRST_PAUSE_SECONDS", 0.01)
    model, metrics, guardian = shutil.copytree(tiny_model(), tmp_path / "model"), Metrics(), Guardian()
    engine = VllmEngine(VllmSettings(model=str(model), context_tokens=2048), metrics, guardian)
    await engine.start()
    try:
        assert engine.context_tokens == 2048
        (model / "config.json").unlink()
        allow_no_more_memory(marked(guardian.mark))
        ended = [error async for error in failures_until_lost(engine)]
        assert {type(error) for error in ended} == {EngineDied, EngineLost}
        [lost] = {str(error) for error in ended if isinstance(error, EngineLost)}
        assert "loading it failed 5 times in a row: 1 validation error for ModelConfig" in lost
        with pytest.raises(EngineLost) as again:
            await engine.generate(request())
        assert str(again.value) == lost
        assert metrics.registry.get_sample_value("postback_engine_restarts_total") == 1
        assert marked(guardian.mark) == []
    finally:
        await engine.close()


def allow_no_more_memory(pids: list[int]) -> None:
    """Limit each process to the address space that it has: its next large allocation fails."""
    for pid in pids:
        process = psutil.Process(pid)
        used = process.memory_info().vms
        process.rlimit(psutil.RLIMIT_AS, (used, used))


async def failures_until_lost(engine: VllmEngine) -> AsyncIterator[BaseException]:
    """Ask sixteen long questions at a time, and yield the errors, until one says that the engine is lost."""
    is_lost = False
    while not is_lost:
        asked = [request(f"r{number}", "word " * 1500, max_tokens=8) for number in range(16)]
        for result in await asyncio.gather(*map(engine.generate, asked), return_exceptions=True):
            if isinstance(result, BaseException):
                is_lost = is_lost or isinstance(result, EngineLost)
                yield result
