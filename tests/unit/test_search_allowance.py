"""A search has an allowance of time and of requests, and its requests take turns with those of other searches."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager

import pytest

from telemetry.clock import SystemClock
from tests.virtual_time import in_virtual_time
from workers.enrichment.search.pace import Allowance, RequestPace, current_allowance

CLOCK = SystemClock()
LONG = 30.0


async def forever() -> None:
    await asyncio.Event().wait()


@in_virtual_time
async def test_a_search_ends_when_its_seconds_are_used_up() -> None:
    with pytest.raises(TimeoutError):
        async with Allowance(0.01).limiting():
            await forever()


@in_virtual_time
async def test_the_seconds_stand_still_in_line_and_run_on_afterwards() -> None:
    with pytest.raises(TimeoutError):
        async with Allowance(0.05).limiting() as allowance:
            with current_allowance().in_line():
                await asyncio.sleep(0.3)
            assert 0 < allowance.left_seconds <= 0.05
            await forever()


@in_virtual_time
async def test_the_seconds_stand_still_as_long_as_one_of_several_requests_is_in_line() -> None:
    async def request(seconds: float) -> None:
        with current_allowance().in_line():
            await asyncio.sleep(seconds)

    async with Allowance(0.05).limiting() as allowance:
        await asyncio.gather(*(request(seconds) for seconds in (0.0, 0.1, 0.2)))
    assert allowance.left_seconds > 0


@in_virtual_time
async def test_a_request_that_stays_in_line_beyond_its_search_does_no_harm() -> None:
    async with Allowance(LONG).limiting() as allowance:
        line: AbstractContextManager[None] = allowance.in_line()
        line.__enter__()
    line.__exit__(None, None, None)
    assert 0 < allowance.left_seconds <= LONG


@in_virtual_time
async def test_a_search_without_an_allowance_has_all_the_time() -> None:
    with current_allowance().in_line():
        await asyncio.sleep(0)


async def test_a_search_that_has_begun_is_finished_before_others_begin() -> None:
    pace, begun, most = RequestPace(CLOCK, 0.001), 0, 0

    async def search() -> None:
        nonlocal begun, most
        async with Allowance(LONG).limiting():
            await pace.turn()
            begun += 1
            most = max(most, begun)
            await pace.turn()
            await pace.turn()
            begun -= 1

    await asyncio.gather(*(search() for _ in range(50)))
    assert most <= 3


async def test_a_cancelled_first_waiter_leaves_its_turn_to_the_next() -> None:
    pace = RequestPace(CLOCK, 0.01)
    await pace.turn()
    head, second = asyncio.create_task(pace.turn()), asyncio.create_task(pace.turn())
    await asyncio.sleep(0)
    head.cancel()
    await second
