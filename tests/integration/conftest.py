"""A fixture of the engines' tests: one real vLLM engine for all of them, since loading it takes a minute."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from scripts.play.model import tiny_model
from telemetry.metrics import Metrics
from tests.integration.lora_adapters import write_adapter
from tests.integration.trapping import hook, named
from workers.engines.vllm import VllmEngine
from workers.engines.vllm.adapters import WEIGHTS
from workers.engines.vllm.settings import VllmSettings

ADAPTERS = ("missing", "weightless", "unsupported", "polite", "wide")
MARKS = ("<think>", "</think>")


@pytest.fixture(scope="package")
def vllm_metrics() -> Metrics:
    """The metrics of `vllm_engine`, including those of vLLM itself."""
    return Metrics()


@pytest.fixture(scope="package")
def adapters_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `vllm_engine`'s adapters: two can be loaded, two cannot, and `missing` does not exist."""
    folder = tmp_path_factory.mktemp("adapters")
    write_adapter(folder / "polite", rank=8)
    write_adapter(folder / "wide", rank=24)
    write_adapter(folder / "weightless", rank=8)
    (folder / "weightless" / WEIGHTS).unlink()
    write_adapter(folder / "unsupported", rank=8, use_dora=True)
    return folder


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def vllm_engine(reasoning_model: Path, adapters_folder: Path, vllm_metrics: Metrics) -> AsyncIterator[VllmEngine]:
    """The tiny model in vLLM, with two adapters and three that cannot be loaded. All tests run in the session's loop.

    The engine ends before the tests of other folders, some of which count this process's threads or memory.
    """
    adapters = {name: str(adapters_folder / name) for name in ADAPTERS}
    settings = VllmSettings(
        model=str(reasoning_model),
        context_tokens=512,
        max_concurrency=16,
        adapters=adapters,
        extra={"disable_log_stats": False},
    )
    engine = VllmEngine(settings, vllm_metrics)
    await engine.start()
    yield engine
    await engine.close()


@pytest.fixture(scope="package")
def reasoning_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny model that reasons: its marks of reasoning are tokens, and its temperature is 0.9."""
    folder = tmp_path_factory.mktemp("models") / "nemotron-tiny"
    shutil.copytree(tiny_model(), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for mark, replaced in zip(MARKS, sorted(vocabulary, key=vocabulary.__getitem__)[-2:], strict=True):
        tokenizer["added_tokens"].append({"id": vocabulary.pop(replaced), "content": mark, **plain})
        merges[:] = [pair for pair in merges if "".join(pair) != replaced]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with (folder / "chat_template.jinja").open("a") as template:
        template.write("{% if enable_thinking %}<think>{% endif %}")
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**generation, "temperature": 0.9}))
    return folder


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Confined processes that a test starts end at a call that their list does not have, and the tests fail."""
    folder = tmp_path_factory.mktemp("trapped")
    calls = folder / "calls"
    hook(folder, calls)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join((str(folder), str(Path(__file__).parents[2]))))
        yield
    assert named(calls) == [], "a reader made calls that workers/processes/confinement.py does not allow"
