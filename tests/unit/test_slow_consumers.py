"""The backlog of a slow but healthy consumer in virtual time: its duration, and its number of writes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from schemas.topics import TIER_DELAYS_SECONDS
from tests.virtual_time import VirtualLoop
from workers.delivery.destinations import Destination, DestinationBusy, Destinations
from workers.delivery.post import Delivered, FailedDelivery, FailureReason
from workers.delivery.retries import Schedule, busy_tier
from workers.delivery.settings import DeliverySettings
from workers.stage.group_commit import LINGER_SECONDS

WAITS = Schedule(TIER_DELAYS_SECONDS).waits
# With 1/32 of the usual limits, 1/32 of a backlog takes as long as the whole backlog, and is faster to simulate.
SETTINGS = DeliverySettings(destination_concurrency=2, destination_queue_records=64, window_records=128)
A_QUARTER = DeliverySettings(destination_concurrency=16, destination_queue_records=512, window_records=1024)
HERE: Destination = ("acme", "https://a.example")
DOWN = FailedDelivery(FailureReason.CONNECT_FAILED, 0.1)


class LoopClock:
    """A clock that shows the virtual time of the running event loop."""

    def time(self) -> float:
        return self.monotonic()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody blocks the loop")


@dataclass
class Consumer:
    """A consumer that takes a constant time for each event; events that get no place wait in a tier and ask again."""

    takes_seconds: float
    settings: DeliverySettings = SETTINGS
    delivered: list[float] = field(default_factory=list)
    """Times of the deliveries, in order."""
    writes: int = 0

    def __post_init__(self) -> None:
        self.destinations = Destinations(self.settings, LoopClock())

    @property
    def a_second(self) -> float:
        return self.settings.destination_concurrency / self.takes_seconds

    async def deliver(self, deferred: int) -> None:
        while True:
            try:
                with await self.destinations.place(HERE, 2_000) as place:
                    await asyncio.sleep(self.takes_seconds)
                    place.outcome = Delivered(200, self.takes_seconds)
                    self.delivered.append(asyncio.get_running_loop().time())
                    return
            except DestinationBusy as busy:
                tier = busy_tier(busy.turn_seconds, deferred, WAITS)
            deferred += 1
            self.writes += 1
            await asyncio.sleep(LINGER_SECONDS + tier)

    async def be_away(self) -> None:
        """Open the breaker, and return after one probe is answered."""
        for _ in range(self.settings.breaker_failures):
            with await self.destinations.place(HERE, 2_000) as place:
                place.outcome = DOWN
        await asyncio.sleep(self.settings.breaker_open_seconds)
        with await self.destinations.place(HERE, 2_000) as place:
            place.outcome = Delivered(200, 0.1)

    def empty(self, backlog: int, *, after_an_outage: bool = False) -> None:
        """Deliver this many events, all due at the same time."""

        async def all_of_them() -> None:
            if after_an_outage:
                await self.be_away()
            # After an outage the waiting events have been deferred nine times each.
            await asyncio.gather(*(self.deliver(9 if after_an_outage else 0) for _ in range(backlog)))

        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(all_of_them())


@pytest.mark.parametrize(
    ("backlog", "takes_seconds", "writes_each"),
    [
        (625, 0.128, 6),  # stands for 20,000 events at 500 a second
        (625, 2.0, 30),  # stands for 20,000 events at 32 a second; an earlier version wrote each event 52 times
        (3125, 2.0, 45),  # stands for 100,000 events at 32 a second; an earlier version wrote each event 270 times
        (100, 20.0, 30),  # stands for 3,200 events at the slowest speed; an earlier version wrote each event 56 times
    ],
)
def test_a_slow_consumer_is_kept_busy_and_no_event_is_rewritten_every_few_seconds(
    backlog: int, takes_seconds: float, writes_each: int
) -> None:
    consumer = Consumer(takes_seconds)
    consumer.empty(backlog)
    ideal = backlog / consumer.a_second
    assert len(consumer.delivered) == backlog
    assert consumer.delivered[backlog * 9 // 10] < 0.9 * ideal * 1.15 + takes_seconds + 10
    assert consumer.delivered[-1] < ideal + 310  # the last event may wait up to 300 s in a tier
    assert consumer.writes < writes_each * backlog


def test_after_an_outage_the_first_few_attempts_at_once_do_not_make_the_backlog_wait_for_longer() -> None:
    consumer = Consumer(2.0, A_QUARTER)
    consumer.empty(3_600, after_an_outage=True)
    assert consumer.delivered[1_800] < 3_600 / consumer.a_second / 2 + 30
    assert consumer.delivered[-1] < 3_600 / consumer.a_second + 310
    assert consumer.writes < 30 * 3_600
