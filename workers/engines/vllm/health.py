"""The health call: an engine hangs if its processes live but do not answer a call between two steps of the model.

A stopped process (SIGSTOP), a hung GPU kernel and a deadlock between worker processes raise nothing, so requests would
wait until their deadlines. vLLM's own `check_health` sees only processes that have ended. An engine that answers the
call does not hang, even if no token comes: a paused engine, for example, must not be killed.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

LOOKS: Final = 4
"""A health call waits in LOOKS slices.

The pause before a call takes 1/LOOKS of `hung_seconds`, and the call itself takes the rest.
"""

WARM_UP_SECONDS: Final = 600.0
"""Seconds in which a new engine must give its first token and load its adapters.

The number is vLLM's own limit for its start (VLLM_ENGINE_READY_TIMEOUT_S).
"""


async def silence(llm: Any, seconds: float) -> float | None:
    """Call vLLM's engine processes. Return the seconds without an answer, or None if they answer in time.

    The bound is `seconds` of this process's running time. The wait is cut into slices, so that the answer still has
    time to arrive after a suspension of this process or machine.
    """
    loop = asyncio.get_running_loop()
    began, call = loop.time(), asyncio.ensure_future(llm.is_sleeping())
    try:
        for _ in range(LOOKS):
            await asyncio.wait({call}, timeout=seconds / LOOKS)
            if call.done():
                call.exception()  # prevents asyncio's warning about an unread error; `errored` reports the error
                return None
    finally:
        call.cancel()
    return loop.time() - began


async def warm(llm: Any) -> None:
    """Generate one token before the first job, because the first request takes many seconds on some machines."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input

    async for _ in llm.generate(tokens_input([1]), SamplingParams(max_tokens=1, logprobs=0), "warm-up"):
        pass
