"""The health call: an engine hangs if its processes live and answer no call between two of the model's steps.

A stopped process (SIGSTOP), a hung kernel of a GPU and a worker process that waits for another one for ever raise
nothing: their requests would wait until their deadlines. vLLM's own `check_health` sees only processes that have ended.
An engine that answers the call steps on, even if no token comes: a paused engine, for example, must not be killed.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

LOOKS: Final = 4
"""Looks at the engine in the bound of a hang. The call waits for the rest of the bound after the pause before it."""


async def answers(llm: Any, seconds: float) -> bool:
    """Call vLLM's engine processes. False if they do not answer in so many seconds in which this process runs.

    The seconds are counted in slices: after a suspension of this process, such as a machine's pause, the answer still
    has its time to arrive.
    """
    call = asyncio.ensure_future(llm.is_sleeping())
    try:
        for _ in range(LOOKS):
            await asyncio.wait({call}, timeout=seconds / LOOKS)
            if call.done():
                call.exception()  # a dead engine raises, and `errored` tells it
                return True
    finally:
        call.cancel()
    return False
