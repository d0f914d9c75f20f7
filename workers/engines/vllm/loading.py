"""Reloading of an engine that died: a bounded number of loads, with growing pauses in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from telemetry.logs import get_logger
from workers.engines.base import EngineLost, EngineUnavailable

LOADS = 5
"""After this many failed loads in a row, the engine is lost, because more loads would not repair the machine."""
FIRST_PAUSE_SECONDS = 5.0
"""The pause after the first failure; each later pause is twice as long."""
MAX_REASON_CHARACTERS = 300

log = get_logger()


async def load_again(load: Callable[[], Awaitable[None]], closing: asyncio.Event) -> None:
    """Call `load` until it returns.

    Raises EngineLost after `LOADS` failures. Raises EngineUnavailable if `closing` is set at a failure or in a pause.
    """
    pause, failure = FIRST_PAUSE_SECONDS, ""
    for number in range(1, LOADS + 1):
        try:
            return await load()
        except Exception as error:
            failure = short(str(error)) or type(error).__name__
            if not closing.is_set():
                log.error(
                    "The engine could not be loaded.",
                    action="engine-load-failed",
                    failures=number,
                    allowed=LOADS,
                    exc_info=error,
                )
        if closing.is_set() or (number < LOADS and await is_set_within(closing, pause)):
            raise EngineUnavailable("the engine is closed")
        pause *= 2
    raise EngineLost(f"the engine died, and loading it failed {LOADS} times in a row: {failure}")


def short(text: str) -> str:
    """Return the text as one line of at most `MAX_REASON_CHARACTERS`."""
    return " ".join(text.split())[:MAX_REASON_CHARACTERS]


async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait at most `seconds` for the event. Return True if the event was set in time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


# -- The health call: an engine hangs if its processes live but do not answer a call between two steps of --
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


# -- Calls of vLLM's engine process that end when the process does --
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
