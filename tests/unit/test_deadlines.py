"""One alarm for many attempts: each ends at its own deadline, independently of the others."""

from __future__ import annotations

import asyncio

import pytest

from tests.virtual_time import in_virtual_time
from workers.delivery.deadlines import Deadlines


async def attempt(deadlines: Deadlines, seconds: float) -> str:
    timeout = deadlines.begin()
    try:
        async with timeout:
            await asyncio.sleep(seconds)
    except TimeoutError:
        return "late"
    finally:
        deadlines.end(timeout)
    return "in time"


@in_virtual_time
async def test_attempts_that_hang_are_late_and_all_others_are_in_time() -> None:
    deadlines = Deadlines(0.2)
    attempts = [attempt(deadlines, seconds) for seconds in (0.0, 60.0, 0.01, 60.0)]
    assert await asyncio.gather(*attempts) == ["in time", "late", "in time", "late"]


@in_virtual_time
async def test_an_attempt_that_begins_beside_another_has_its_whole_time() -> None:
    deadlines, loop = Deadlines(0.3), asyncio.get_running_loop()
    first = asyncio.create_task(attempt(deadlines, 60.0))
    await asyncio.sleep(0.2)
    began = loop.time()
    assert await attempt(deadlines, 60.0) == "late"
    assert first.done()
    assert loop.time() - began == pytest.approx(0.3)


@in_virtual_time
async def test_the_alarm_of_an_ended_attempt_affects_no_other_and_the_next_attempt_has_its_own() -> None:
    deadlines = Deadlines(0.1)
    assert await attempt(deadlines, 0.0) == "in time"
    await asyncio.sleep(0.05)
    assert await attempt(deadlines, 0.08) == "in time"  # this attempt still runs when the ended attempt's alarm comes
    assert await attempt(deadlines, 60.0) == "late"


@in_virtual_time
async def test_a_task_that_is_cancelled_is_cancelled_and_not_late() -> None:
    deadlines = Deadlines(60.0)
    task = asyncio.create_task(attempt(deadlines, 60.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadlines.close()
