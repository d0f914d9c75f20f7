"""Calls of vLLM's engine process that end when the process does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from workers.engines.base import EngineUnavailable

DEATH_LOOK_SECONDS: Final = 0.5
"""The pause between two looks at the engine's health during a call."""


async def while_alive(llm: Any, call: Coroutine[Any, Any, None]) -> None:
    """Await a call of the engine.

    Raises EngineUnavailable if vLLM's process ends, because a call of vLLM 0.32 would then never end.
    """
    task = asyncio.ensure_future(call)
    try:
        while not task.done():
            if llm.errored:
                raise EngineUnavailable("vLLM's process ended during the change")
            await asyncio.wait({task}, timeout=DEATH_LOOK_SECONDS)
        await task
    finally:
        task.cancel()
