"""The engine that runs vLLM in the worker's process.

    engine          the engine
    arguments       start arguments
    adapters        LoRA adapters and their folders, loaded at the start and changed later
    weights         other weights or adapters for a running engine
    chat            requests as vLLM's own, with their prompts, parameters and tools
    answers         vLLM's outputs and errors as an engine's, and answers that grow
    decoding        an answer's tokens as text
    thinking        the model's reasoning
    pooling         embeddings, scores and classes
    loading         reloads an engine that died, tells if one hangs, and explains a failed load
    process_log     the output of vLLM's own processes, in the worker's log
    figures         takes vLLM's own counts, and exports some as metrics
    guardian        ends the engine's processes when the worker ends
    cpu_worker      asks Linux for AMX

`create` makes the engine of a worker.
"""

from __future__ import annotations

from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.vllm.engine import VllmEngine
from workers.engines.vllm.settings import VllmSettings

__all__ = ["Settings", "VllmEngine", "VllmSettings", "create"]

Settings = VllmSettings


def create(settings: VllmSettings, metrics: Metrics, clock: Clock) -> VllmEngine:
    """Make the engine of a worker; see `EngineModule`."""
    return VllmEngine(settings, metrics)
