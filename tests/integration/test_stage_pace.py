"""A stage on a real broker whose records wait until they are due."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from confluent_kafka import Producer

from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.stage.build import group_stage
from workers.stage.record import Failure, Output, Record
from workers.stage.settings import StageSettings

pytestmark = pytest.mark.broker

CLOCK = SystemClock()


class Collector:
    """A handler that remembers every record."""

    def __init__(self) -> None:
        self.seen: set[tuple[int, int]] = set()

    async def handle(self, record: Record) -> Sequence[Output]:
        self.seen.add((record.partition, record.offset))
        return ()

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        raise AssertionError(failure.message)


class DueWhenAskedAgain:
    """A pace that calls a record far from due the first three times that the stage asks, and then due."""

    def __init__(self) -> None:
        self._asked = Counter[tuple[int, int]]()

    def room(self) -> int:
        return 1 << 30

    def due_ms(self, record: Record) -> int | None:
        place = record.partition, record.offset
        self._asked[place] += 1
        return None if self._asked[place] > 3 else round(CLOCK.time() * 1000) + 3_600_000

    @property
    def paced(self) -> bool:
        return True


async def test_a_record_that_comes_due_after_it_was_put_off_does_not_leave_its_partition_paused(
    fleet: KafkaSettings,
) -> None:
    producer = Producer(fleet.client_config())
    for number in range(16):
        producer.produce(fleet.topics.results, b"{}", partition=number % 4)
    assert producer.flush(20) == 0
    handler = Collector()
    stage = group_stage(
        StageSettings("delivery"),
        fleet,
        [fleet.topics.results],
        "r1",
        handler,
        CLOCK,
        Metrics(),
        DueWhenAskedAgain(),
    )
    running = asyncio.ensure_future(stage.run())
    try:
        async with asyncio.timeout(60):
            while len(handler.seen) < 16:
                await asyncio.sleep(0.02)
    finally:
        stage.stop()
        await running
