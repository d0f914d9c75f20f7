"""The engine for any server that speaks OpenAI's protocol: a vLLM server, llama.cpp, a hosted service.

`engine` gives requests their slots, deadlines and tries. `server` sends the POSTs, checks the model at the start, and
reads answers, whole or piece by piece. Requests beyond the server's limit wait in `slots`, which learns the limit from
the server's counts or its refusals. `dialect` writes requests in the form that the server takes, and reads its answers.
"""

from __future__ import annotations

from workers.engines.openai_http.dialect import OpenAIServer
from workers.engines.openai_http.engine import engine_of
from workers.engines.openai_http.settings import OpenAISettings

__all__ = ["Settings", "create"]

Settings = OpenAISettings

create = engine_of(OpenAIServer)
