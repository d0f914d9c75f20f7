"""Places at origins: who gets one, who is turned away, and what the others have left."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from clocks import SetClock

from workers.delivery.breaker import State
from workers.delivery.destinations import Destination, DestinationBusy, Destinations
from workers.delivery.post import Delivered, FailedDelivery, FailureReason, PostOutcome
from workers.delivery.settings import DeliverySettings

HERE: Destination = ("acme", "https://a.example")
OK = Delivered(200, 0.1)
DOWN = FailedDelivery(FailureReason.CONNECT_FAILED, 0.1)
SLOW_DOWN = FailedDelivery(FailureReason.THROTTLED, 0.1, 429)


class Desk:
    """Destinations with a clock, and what they say of breakers."""

    def __init__(self, **settings: float) -> None:
        self.clock = SetClock(0.0)
        self.said: list[tuple[Destination, State, float]] = []
        self.destinations = Destinations(
            DeliverySettings(**{"destination_queue_records": 0, **settings}),  # type: ignore[arg-type]  # a dict's values
            self.clock,
            lambda *change: self.said.append(change),
        )

    async def attempt(self, outcome: PostOutcome | None, destination: Destination = HERE) -> None:
        with await self.destinations.place(destination) as place:
            place.outcome = outcome

    async def places(self, stack: ExitStack, destination: Destination = HERE) -> int:
        """Take all that there are, for as long as the stack is open."""
        taken = 0
        while True:
            try:
                stack.enter_context(await self.destinations.place(destination))
            except DestinationBusy:
                return taken
            taken += 1


async def test_an_origin_has_no_more_of_the_window_than_is_free() -> None:
    desk = Desk(window_records=100, destination_concurrency=64)
    with ExitStack() as stack:
        taken = [await desk.places(stack, ("acme", f"https://{number}.example")) for number in range(12)]
        assert taken == [50, 25, 13, 6, 3, 2, 1, 1, 1, 1, 1, 1]  # one at least, or a full window would starve it
        assert desk.destinations.held == sum(taken)
    assert (desk.destinations.held, len(desk.destinations)) == (0, 0)


async def test_equal_hung_origins_leave_an_equal_share_to_those_that_come_later() -> None:
    desk = Desk(window_records=100, destination_concurrency=64)
    with ExitStack() as stack:
        held = dict.fromkeys(range(9), 0)
        for _ in range(64):  # all nine ask in turn
            for number in held:
                try:
                    stack.enter_context(await desk.destinations.place(("acme", f"https://{number}.example")))
                    held[number] += 1
                except DestinationBusy:
                    pass
        assert desk.destinations.held == 90
        assert set(held.values()) == {10}
        assert await desk.places(stack) > 0


async def test_a_dead_origin_is_deferred_for_as_long_as_it_is_left_alone() -> None:
    desk = Desk(breaker_failures=3, breaker_open_seconds=40)
    for _ in range(3):
        await desk.attempt(DOWN)
    desk.clock.now = 10.0
    with pytest.raises(DestinationBusy) as busy:
        await desk.attempt(OK)
    assert busy.value.wait_seconds == 40
    assert desk.said == [(HERE, State.OPEN, 40.0)]
    await desk.attempt(OK, ("other", HERE[1]))
    await desk.attempt(OK, ("acme", "https://b.example"))


async def test_one_probe_at_a_time_and_its_success_lets_others_in_more_and_more() -> None:
    desk = Desk(breaker_failures=1, breaker_open_seconds=5, destination_concurrency=4)
    await desk.attempt(DOWN)
    desk.clock.now = 5.0
    with await desk.destinations.place(HERE) as probe:
        with pytest.raises(DestinationBusy) as busy:
            await desk.attempt(OK)
        assert busy.value.wait_seconds == 0
        probe.outcome = OK
    assert [state for _, state, _ in desk.said] == [State.OPEN, State.CLOSED]
    for allowed in (2, 3, 4, 4):
        with ExitStack() as stack:
            assert await desk.places(stack) == allowed
        await desk.attempt(OK)
    assert len(desk.destinations) == 0


async def test_a_probe_that_is_cut_off_is_made_by_the_next() -> None:
    desk = Desk(breaker_failures=1, breaker_open_seconds=5)
    await desk.attempt(DOWN)
    desk.clock.now = 5.0
    await desk.attempt(None)
    await desk.attempt(OK)
    assert desk.said[-1] == (HERE, State.CLOSED, 0.0)


async def test_a_probe_that_fails_opens_it_for_twice_as_long() -> None:
    desk = Desk(breaker_failures=1, breaker_open_seconds=5)
    await desk.attempt(DOWN)
    desk.clock.now = 5.0
    await desk.attempt(DOWN)
    assert desk.said[-1] == (HERE, State.OPEN, 10.0)


async def test_each_429_halves_the_attempts_at_once_and_each_answer_adds_one() -> None:
    desk = Desk(destination_concurrency=16)
    for outcome, allowed in ((SLOW_DOWN, 8), (SLOW_DOWN, 4), (OK, 5), (SLOW_DOWN, 2), (SLOW_DOWN, 1), (SLOW_DOWN, 1)):
        await desk.attempt(outcome)
        with ExitStack() as stack:
            assert await desk.places(stack) == allowed


async def test_a_retry_after_holds_the_whole_origin_for_an_hour_at_most() -> None:
    desk = Desk()
    await desk.attempt(FailedDelivery(FailureReason.THROTTLED, 0.1, 429, 86_400.0))
    with pytest.raises(DestinationBusy) as busy:
        await desk.attempt(OK)
    assert busy.value.wait_seconds == 3600
    desk.clock.now = 3600.0
    await desk.attempt(OK)


async def test_whoever_waits_for_a_place_is_turned_away_when_the_breaker_opens() -> None:
    desk = Desk(breaker_failures=1, breaker_open_seconds=7, destination_concurrency=1, destination_queue_records=5)
    with await desk.destinations.place(HERE) as place:
        waiting = [asyncio.ensure_future(desk.attempt(OK)) for _ in range(3)]
        await asyncio.sleep(0)
        assert desk.destinations.held == 4
        place.outcome = DOWN
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [error.wait_seconds for error in ended if isinstance(error, DestinationBusy)] == [7.0] * 3
    assert desk.destinations.held == 0


async def test_a_waiter_that_is_cancelled_as_the_breaker_opens_leaves_nothing_behind() -> None:
    desk = Desk(breaker_failures=1, destination_concurrency=1, destination_queue_records=5)
    with await desk.destinations.place(HERE) as place:
        waiting = asyncio.ensure_future(desk.attempt(OK))
        await asyncio.sleep(0)
        place.outcome = DOWN
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert desk.destinations.held == 0


async def test_only_so_many_idle_origins_are_remembered() -> None:
    desk = Desk()
    for number in range(10_050):
        await desk.attempt(DOWN, ("acme", f"https://{number}.example"))
    assert len(desk.destinations) == 10_000
