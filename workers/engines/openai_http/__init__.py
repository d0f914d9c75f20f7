"""The engine for any server that speaks OpenAI's protocol: a vLLM server, llama.cpp, a hosted service.

`engine` gives requests their slots, deadlines and tries. `server` sends the POSTs, and checks the model at the start.
Requests beyond the `limits` wait in `slots`. `follow` learns the limits from the server's `figures`; without figures,
the limits follow the server's refusals. `dialect` writes requests in the form that the server takes, and `answers`
reads the server's responses, whole or piece by piece.
"""

from __future__ import annotations

from workers.engines.openai_http.dialect import OpenAIServer
from workers.engines.openai_http.engine import engine_of
from workers.engines.openai_http.settings import OpenAISettings

__all__ = ["Settings", "create"]

Settings = OpenAISettings

create = engine_of(OpenAIServer)
