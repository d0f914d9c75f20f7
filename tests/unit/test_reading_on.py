"""A starting process waits for the fleet's facts for as long as records keep coming."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from workers.kafka import compacted
from workers.kafka.compacted import CompactedTopic
from workers.kafka.topics import BrokerAway


async def wait_while(monkeypatch: pytest.MonkeyPatch, comes: list[int]) -> int:
    """Catch up while each wait times out after so many new records; return the number of waits."""
    caught_up = asyncio.Event()
    topic = CompactedTopic(KafkaSettings(), "job_control", lambda key, value: None, SystemClock())
    topic._ended = asyncio.get_running_loop().create_future()
    waits = 0

    async def wait(
        waiting: set[asyncio.Future[object]], **how: object
    ) -> tuple[set[asyncio.Future[object]], set[asyncio.Future[object]]]:
        nonlocal waits
        if waits == len(comes):
            caught_up.set()
            return await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        topic._next[0] = topic._next.get(0, 0) + comes[waits]
        waits += 1
        return set(), waiting

    seen = SimpleNamespace(
        wait=wait, ensure_future=asyncio.ensure_future, FIRST_COMPLETED=asyncio.FIRST_COMPLETED, shield=asyncio.shield
    )
    monkeypatch.setattr(compacted, "asyncio", seen)
    await topic._catch_up(caught_up)
    return waits


async def test_a_long_topic_is_read_for_as_long_as_something_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await wait_while(monkeypatch, [100_000, 1, 5_000]) == 3


@pytest.mark.parametrize("comes", [[0], [5, 0]])
async def test_a_topic_of_which_nothing_comes_is_given_up(monkeypatch: pytest.MonkeyPatch, comes: list[int]) -> None:
    with pytest.raises(BrokerAway, match="could not be read to its end: nothing came for 60 s"):
        await wait_while(monkeypatch, [*comes, *[0] * 5])
