"""The engine for any server that speaks OpenAI's protocol: a vLLM server, llama.cpp, a hosted service.

`engine` gives requests their slots, deadlines and tries. `server` sends the POSTs, and checks the model at the start.
Requests beyond the `limits` wait in `slots`. `follow` learns the limits from the server's `figures`; without figures,
the limits follow the server's refusals. `dialect` writes requests in the form that the server takes, and `answers`
reads the server's responses. `stream` reads an answer that comes piece by piece.
"""

from __future__ import annotations

from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.openai_http.dialect import OpenAIServer
from workers.engines.openai_http.engine import HttpEngine
from workers.engines.openai_http.settings import OpenAISettings

__all__ = ["Settings", "create"]

Settings = OpenAISettings


def create(settings: OpenAISettings, metrics: Metrics, clock: Clock) -> HttpEngine:
    """Make the engine of a worker; see `EngineModule`."""
    return HttpEngine(OpenAIServer(settings, clock), metrics)
