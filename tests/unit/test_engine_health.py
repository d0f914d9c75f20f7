"""The health call of vLLM's processes: an engine that answers late, never, or after a pause of its caller."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from workers.engines.vllm.health import silence

BOUND = 0.2


class Called:
    """Takes the place of vLLM's `AsyncLLM`; `answer` decides how a health call ends."""

    def __init__(self, answer: Callable[[], Awaitable[bool]]) -> None:
        self._answer = answer
        self.was_cancelled = False

    async def is_sleeping(self) -> bool:
        try:
            return await self._answer()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


async def test_an_engine_without_an_answer_hangs_and_its_call_is_cancelled() -> None:
    engine = Called(asyncio.Event().wait)
    silent = await silence(engine, BOUND)
    assert silent is not None
    assert silent >= 0.9 * BOUND  # the loop's timers may fire a clock's step early
    await asyncio.sleep(0)
    assert engine.was_cancelled


async def test_an_engine_that_answers_or_is_dead_does_not_hang() -> None:
    async def dead() -> bool:
        raise RuntimeError

    async def awake() -> bool:
        return False

    assert await silence(Called(awake), BOUND) is None
    assert await silence(Called(dead), BOUND) is None


async def test_an_engine_does_not_hang_because_its_caller_was_paused_for_longer_than_the_bound() -> None:
    """After a pause of the machine or the worker, the timeout fires first, and the answer is read some steps later."""

    async def after_a_pause() -> bool:
        time.sleep(2 * BOUND)  # blocks the loop like a pause of the process
        for _ in range(20):
            await asyncio.sleep(0)
        return False

    assert await silence(Called(after_a_pause), BOUND) is None
