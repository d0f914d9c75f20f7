"""A backlog of a consumer that is slow but well, in virtual time: how long it takes, and how often it is written."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from virtual_time import VirtualLoop

from schemas.topics import TIER_DELAYS_SECONDS
from workers.delivery.destinations import Destination, DestinationBusy, Destinations
from workers.delivery.post import Delivered
from workers.delivery.retries import Schedule, busy_tier
from workers.delivery.settings import DeliverySettings

TIERS = Schedule(TIER_DELAYS_SECONDS).tiers
# A thirty-second of what is usual, for a thirty-second of a backlog: it takes as long, and is played as much faster.
SETTINGS = DeliverySettings(destination_concurrency=2, destination_queue_records=64, window_records=128)


class LoopClock:
    """Shows the time of the loop that runs."""

    def time(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody blocks the loop")


@dataclass
class Consumer:
    """Takes as long for each event; what it has no place for comes round through the tiers."""

    takes_seconds: float
    destinations: Destinations = field(default_factory=lambda: Destinations(SETTINGS, LoopClock()))
    delivered: list[float] = field(default_factory=list)
    """When each was, in order."""
    writes: int = 0

    @property
    def a_second(self) -> float:
        return SETTINGS.destination_concurrency / self.takes_seconds

    async def deliver(self, destination: Destination = ("acme", "https://a.example")) -> None:
        deferred = 0
        while True:
            try:
                with await self.destinations.place(destination, 2_000) as place:
                    await asyncio.sleep(self.takes_seconds)
                    place.outcome = Delivered(200, self.takes_seconds)
                    self.delivered.append(asyncio.get_running_loop().time())
                    return
            except DestinationBusy as busy:
                tier = busy_tier(busy.turn_seconds, deferred, TIERS)
            deferred += 1
            self.writes += 1
            await asyncio.sleep(tier)

    def empty(self, backlog: int) -> None:
        """Deliver so many events that are due at once."""

        async def all_of_them() -> None:
            await asyncio.gather(*(self.deliver() for _ in range(backlog)))

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(all_of_them())


@pytest.mark.parametrize(
    ("backlog", "takes_seconds", "writes_each"),
    [
        (625, 0.128, 6),  # 20,000 at 500 a second
        (625, 2.0, 30),  # 20,000 at 32 a second; all of them every few seconds were 52
        (3125, 2.0, 45),  # 100,000 at 32 a second; 270
        (100, 20.0, 30),  # 3,200, and each takes as long as an attempt may; 56
    ],
)
def test_a_slow_consumer_is_kept_busy_and_no_event_is_written_anew_every_few_seconds(
    backlog: int, takes_seconds: float, writes_each: int
) -> None:
    consumer = Consumer(takes_seconds)
    consumer.empty(backlog)
    ideal = backlog / consumer.a_second
    assert len(consumer.delivered) == backlog
    assert consumer.delivered[backlog * 9 // 10] < 0.9 * ideal * 1.15 + takes_seconds + 10
    assert consumer.delivered[-1] < ideal + 310  # the last one may have been told to wait longest
    assert consumer.writes < writes_each * backlog
