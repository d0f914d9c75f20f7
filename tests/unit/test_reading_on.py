"""A starting process waits for the fleet's facts for as long as records keep coming."""

from __future__ import annotations

import asyncio

import pytest

from tests.virtual_time import in_virtual_time
from workers.kafka.compacted import START_SECONDS, until_caught_up
from workers.kafka.topics import BrokerAway


async def wait_while(comes: list[int]) -> float:
    """Catch up on a topic from which `comes[n]` records come in period n; return the number of periods waited."""
    loop, caught_up, total, left = asyncio.get_running_loop(), asyncio.Event(), 0, iter([0, *comes])
    began = loop.time()

    def read() -> int:
        nonlocal total
        total += next(left)
        if loop.time() - began >= len(comes) * START_SECONDS:
            caught_up.set()
        return total

    await until_caught_up("job_control", caught_up.wait(), loop.create_future(), read)
    return (loop.time() - began) / START_SECONDS


@in_virtual_time
async def test_a_long_topic_is_read_for_as_long_as_something_comes() -> None:
    assert await wait_while([100_000, 1, 5_000]) == 3


@in_virtual_time
async def test_a_topic_that_delivers_no_record_is_given_up() -> None:
    for comes in ([0], [5, 0]):
        with pytest.raises(BrokerAway, match="could not be read to its end: no record came for 60 s"):
            await wait_while([*comes, *[0] * 5])
