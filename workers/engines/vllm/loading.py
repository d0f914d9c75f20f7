"""Reloading of an engine that died: a bounded number of loads, with growing pauses in between."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

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
