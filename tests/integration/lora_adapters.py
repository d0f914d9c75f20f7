"""LoRA adapters for the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

from workers.engines.vllm.adapters import CONFIG, WEIGHTS


def write_adapter(folder: Path, rank: int, *, seed: int | None = None, width: int = 128, **config: object) -> Path:
    """Write a LoRA adapter for the tiny model, with weights large enough to change its answers."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    target = "base_model.model.model.layers.0.self_attn.q_proj"
    torch.manual_seed(seed if seed is not None else rank)
    save_file(
        {f"{target}.lora_A.weight": torch.randn(rank, width), f"{target}.lora_B.weight": torch.randn(width, rank)},
        folder / WEIGHTS,
    )
    config = {
        **config,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 64,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    (folder / CONFIG).write_text(json.dumps(config))
    return folder
