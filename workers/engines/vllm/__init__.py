"""vLLM in the worker's process.

`engine` is the engine. `arguments` says how vLLM is started, `tokens` makes a prompt of tokens, `sampling` turns our
requests and its answers into each other, and `schema_limits` refuses schemas that would hold it up. `loading` loads an
engine that died again, `load_failures` knows why one does not load, `guardian` ends its processes with the worker, and
`cpu_worker` asks Linux for AMX.
"""

from __future__ import annotations

from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.vllm.engine import VllmEngine
from workers.engines.vllm.settings import VllmSettings

__all__ = ["Settings", "VllmEngine", "VllmSettings", "create"]

Settings = VllmSettings


def create(settings: VllmSettings, metrics: Metrics, clock: Clock) -> VllmEngine:
    """The engine of a worker; see `EngineModule`."""
    return VllmEngine(settings, metrics)
