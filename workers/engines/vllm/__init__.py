"""The engine that runs vLLM in the worker's process.

    engine          the engine
    arguments       start arguments
    adapters        LoRA adapters, loaded at the start and changed later
    adapter_files   the adapters' folders
    tensors         shapes in safetensors files
    calls           calls that end when vLLM's process does
    changes         other weights or adapters for a running engine
    weights         the weights of another folder of the same model
    tokens          a prompt as tokens
    sampling        requests and answers in vLLM's terms
    decoding        an answer's text, decoded once from its tokens
    calling         tools, and the calls in an answer
    thinking        the model's reasoning
    pooling         embeddings, scores and classes
    schema_limits   rejects schemas that would block vLLM
    loading         reloads an engine that died
    load_failures   explains a failed load
    failures        turns vLLM's errors into an engine's
    process_log     the output of vLLM's own processes, in the worker's log
    figures         takes vLLM's own counts, and exports some as metrics
    health          tells if an engine hangs
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
