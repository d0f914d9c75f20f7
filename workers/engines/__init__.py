"""Engines: whatever generates the answers. `base` is the seam, `create` the way in.

- `echo` answers at once; for development, benches and tests of faults
- `vllm` is vLLM in this process, on a GPU or a CPU
- `openai` is any OpenAI-compatible server
"""

from __future__ import annotations

from typing import Literal, assert_never

from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.base import Engine
from workers.engines.settings import EngineSettings

__all__ = ["EngineKind", "EngineSettings", "create"]

EngineKind = Literal["echo", "vllm", "openai"]


def create(
    kind: EngineKind, settings: EngineSettings, metrics: Metrics, clock: Clock, *, model: str | None = None
) -> Engine:
    """An engine that is not started yet. `model` beats the settings.

    An engine's module is imported only here, so that a worker without vLLM does not carry it.
    Raises ValueError where the engine needs a model and none is named.
    """
    match kind:
        case "echo":
            from workers.engines.echo import EchoEngine

            return EchoEngine(settings.echo, metrics, model)
        case "vllm":
            from workers.engines.vllm import VllmEngine

            return VllmEngine(settings.vllm.model_copy(update={"model": model or settings.vllm.model}), metrics)
        case "openai":
            from workers.engines.openai_http import OpenAIEngine

            chosen = settings.openai.model_copy(update={"model": model or settings.openai.model})
            return OpenAIEngine(chosen, clock)
    assert_never(kind)
