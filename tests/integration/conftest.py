"""A fixture of the engines' tests: one real vLLM engine for the session, since loading it takes a minute."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from devkit.model import tiny_model
from telemetry.metrics import Metrics
from workers.engines.vllm import VllmEngine
from workers.engines.vllm.settings import VllmSettings

ADAPTER = "polite"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def vllm_engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    """The tiny model in vLLM, with one adapter. Its tests run in the session's event loop."""
    adapter = tmp_path_factory.mktemp("adapters") / ADAPTER
    _write_adapter(adapter)
    settings = VllmSettings(
        model=str(tiny_model()), max_model_len=512, max_num_seqs=16, adapters={ADAPTER: str(adapter)}
    )
    engine = VllmEngine(settings, Metrics())
    await engine.start()
    yield engine
    await engine.close()


def _write_adapter(folder: Path) -> None:
    """Write a LoRA adapter for the tiny model, with weights large enough to change its answers."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    target = "base_model.model.model.layers.0.self_attn.q_proj"
    torch.manual_seed(1)
    save_file(
        {f"{target}.lora_A.weight": torch.randn(8, 128), f"{target}.lora_B.weight": torch.randn(128, 8)},
        folder / "adapter_model.safetensors",
    )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 8,
        "lora_alpha": 64,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
