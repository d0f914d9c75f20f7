"""Places at origins: granted places, refused places, and places left free for later tenants and origins."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.hand_clock import SetClock
from workers.delivery.breaker import BreakerState
from workers.delivery.destinations import (
    AttemptSlot,
    Destination,
    DestinationBusy,
    Destinations,
    OriginLeftAlone,
    TurnedAway,
)
from workers.delivery.post import Delivered, FailedDelivery, FailureReason, PostOutcome
from workers.delivery.settings import DeliverySettings

HERE: Destination = ("acme", "https://a.example")
SIZE = 2_000
"""Bytes of a usual result."""
LARGE = 900_000
MIB = 1 << 20
OK = Delivered(200, 0.1)
DOWN = FailedDelivery(FailureReason.CONNECT_FAILED, 0.1)
SLOW_DOWN = FailedDelivery(FailureReason.THROTTLED, 0.1, 429)


class Desk:
    """Destinations with a clock, and the changes of breakers that the destinations have reported."""

    def __init__(self, **settings: float) -> None:
        self.clock = SetClock(0.0)
        self.said: list[tuple[Destination, BreakerState, float]] = []
        self.destinations = Destinations(
            DeliverySettings(**{"destination_queue_records": 0, **settings}),  # type: ignore[arg-type]  # a dict's values
            self.clock,
            lambda *change: self.said.append(change),
        )

    async def attempt(self, outcome: PostOutcome | None, destination: Destination = HERE, size: int = SIZE) -> None:
        with await self.destinations.place(destination, size) as place:
            place.outcome = outcome

    async def places(self, stack: ExitStack, destination: Destination = HERE, size: int = SIZE) -> int:
        """Take all free places, and keep them until the stack closes; return their number."""
        taken = 0
        while True:
            try:
                stack.enter_context(await self.destinations.place(destination, size))
            except TurnedAway:
                return taken
            taken += 1


async def test_a_hung_origin_has_two_fifths_of_the_window_and_hung_origins_of_further_tenants_have_less() -> None:
    desk = Desk(window_records=100, destination_concurrency=64)
    with ExitStack() as stack:
        taken = [await desk.places(stack, (f"tenant{number}", HERE[1])) for number in range(6)]
        assert taken == [40, 24, 15, 9, 5, 3]
        assert desk.destinations.held == sum(taken)
    assert (desk.destinations.held, len(desk.destinations)) == (0, 0)


async def test_equal_hung_origins_of_a_tenant_share_half_the_window_with_those_that_come_later() -> None:
    desk = Desk(window_records=120, destination_concurrency=64)
    with ExitStack() as stack:
        held = dict.fromkeys(range(6), 0)
        for _ in range(64):  # the six origins ask for places in turn
            for number in held:
                with suppress(TurnedAway):
                    stack.enter_context(await desk.destinations.place(("acme", f"https://{number}.example"), SIZE))
                    held[number] += 1
        assert set(held.values()) == {9, 10}
        assert await desk.places(stack, ("other", HERE[1])) > 0


async def test_a_tenant_with_thousands_of_hung_origins_leaves_room_to_others_and_to_its_own_that_answer() -> None:
    desk = Desk()
    window = DeliverySettings().window_records
    await desk.attempt(OK)
    with ExitStack() as stack:
        taken = [await desk.places(stack, ("acme", f"https://x{number}.example")) for number in range(5000)]
        assert window // 2 <= sum(taken) <= window // 2 + 1
        assert await desk.places(stack) == 64
        assert await desk.places(stack, ("other", "https://other.example")) == 64


async def test_a_tenant_whose_probes_hang_leaves_room_to_others() -> None:
    desk = Desk(breaker_failures=1, breaker_open_seconds=5, window_records=90)
    origins: list[Destination] = [("acme", f"https://x{number}.example") for number in range(200)]
    for origin in origins:
        await desk.attempt(DOWN, origin)
    desk.clock.now = 5.0
    with ExitStack() as stack:
        assert sum([await desk.places(stack, origin) for origin in origins]) == 45
        assert await desk.places(stack, ("other", HERE[1])) > 0


async def test_a_new_origin_finds_room_beside_a_hung_origin_of_its_tenant_that_is_at_its_limit() -> None:
    desk = Desk(destination_concurrency=10_000)
    with ExitStack() as stack:
        assert await desk.places(stack, ("acme", "https://hung.example")) > 1600
        assert await desk.places(stack, ("acme", "https://new.example")) > 300


async def test_an_origin_that_stops_answering_counts_as_a_stranger_with_all_of_its_records() -> None:
    desk = Desk(window_records=90)
    await desk.attempt(OK)
    with ExitStack() as stack:
        with await desk.destinations.place(HERE, SIZE) as place:
            assert await desk.places(stack) == 44
            assert await desk.places(stack, ("acme", "https://stranger.example")) > 0
            place.outcome = DOWN
        assert await desk.places(stack, ("acme", "https://another.example")) == 0


async def test_large_records_of_hung_origins_take_at_most_half_of_the_bytes() -> None:
    desk = Desk(destination_concurrency=10_000, window_bytes=256 * MIB)
    await desk.attempt(OK)
    with ExitStack() as stack:
        alone = await desk.places(stack, ("hung", HERE[1]), LARGE)
        assert 48 * MIB < alone * LARGE <= 52 * MIB
        others = [await desk.places(stack, ("hung", f"https://x{number}.example"), LARGE) for number in range(500)]
        assert (alone + sum(others)) * LARGE <= 64 * MIB + LARGE
        assert await desk.places(stack) > 300
        assert await desk.places(stack, ("other", "https://large.example"), LARGE) > 10
    assert desk.destinations.held == 0


async def test_all_records_together_have_no_more_than_half_of_the_bytes() -> None:
    desk = Desk(destination_concurrency=10_000, window_bytes=16 * MIB)
    with ExitStack() as stack:
        taken = [await desk.places(stack, (f"tenant{number}", HERE[1]), LARGE) for number in range(200)]
        assert 6 * MIB < sum(taken) * LARGE <= 8 * MIB + LARGE


Step = tuple[str, str, PostOutcome | None]
"""One step: a tenant and an origin ask for a place, and an earlier place may end with this outcome."""

STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("123456789"), st.sampled_from([OK, DOWN, SLOW_DOWN, None])),
    max_size=400,
)


@given(window=st.integers(1, 200), steps=STEPS, ends=st.lists(st.integers(0, 2), min_size=1, max_size=20))
def test_each_tenant_leaves_a_third_of_the_free_window_to_the_next(
    window: int, steps: list[Step], ends: list[int]
) -> None:
    async def play() -> None:
        desk = Desk(window_records=window, breaker_open_seconds=0.001)
        held: list[tuple[str, AttemptSlot]] = []
        for number, (tenant, origin, outcome) in enumerate(steps):
            desk.clock.now += 1.0
            with suppress(TurnedAway):
                held.append((tenant, await desk.destinations.place((tenant, origin), SIZE)))
            if held and ends[number % len(ends)] == 0:
                _, place = held.pop(number * 7 % len(held))
                with place:
                    place.outcome = outcome
            assert desk.destinations.held == len(held)
            tenants = len({tenant for tenant, _ in held})
            # Each tenant leaves at least a third of the places that were free when it came, give or take one record.
            # The bound follows by induction over the tenants, from the last admitted one.
            assert window + 1 <= 3**tenants * (window - len(held) + 1)
        for _, place in held:
            with place:
                place.outcome = OK
        assert desk.destinations.held == 0

    asyncio.run(play())


@given(window=st.integers(12, 300), strangers=st.lists(st.integers(0, 400), max_size=400))
def test_a_sixth_of_the_window_is_left_to_a_tenants_answering_origins_however_many_strangers_hang(
    window: int, strangers: list[int]
) -> None:
    async def play() -> None:
        desk = Desk(window_records=window)
        known: list[Destination] = [("acme", f"https://known{number}.example") for number in range(window)]
        for destination in known:
            await desk.attempt(OK, destination)
        with ExitStack() as stack:
            for number in strangers:
                with suppress(TurnedAway):
                    stack.enter_context(await desk.destinations.place(("acme", f"https://x{number}.example"), SIZE))
            assert desk.destinations.held <= window // 2 + 1
            assert sum([await desk.places(stack, destination) for destination in known]) >= window // 6

    asyncio.run(play())


async def test_a_dead_origin_is_deferred_for_as_long_as_it_is_left_alone() -> None:
    desk = Desk(breaker_failures=3, breaker_open_seconds=40)
    for _ in range(3):
        await desk.attempt(DOWN)
    desk.clock.now = 10.0
    with pytest.raises(OriginLeftAlone) as busy:
        await desk.attempt(OK)
    assert busy.value.wait_seconds == 40
    assert desk.said == [(HERE, BreakerState.OPEN, 40.0)]
    await desk.attempt(OK, ("other", HERE[1]))
    await desk.attempt(OK, ("acme", "https://b.example"))


async def test_probes_run_one_at_a_time_and_a_success_admits_more_and_more_attempts() -> None:
    desk = Desk(breaker_failures=1, breaker_open_seconds=5, destination_concurrency=4)
    await desk.attempt(DOWN)
    desk.clock.now = 5.0
    with await desk.destinations.place(HERE, SIZE) as probe:
        with pytest.raises(OriginLeftAlone) as busy:
            await desk.attempt(OK)
        assert busy.value.wait_seconds == 5  # the breaker sets this time, however long the probe hangs
        probe.outcome = OK
    assert [state for _, state, _ in desk.said] == [BreakerState.OPEN, BreakerState.CLOSED]
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
    assert desk.said[-1] == (HERE, BreakerState.CLOSED, 0.0)


async def test_a_probe_that_fails_opens_the_breaker_for_twice_as_long() -> None:
    desk = Desk(breaker_failures=1, breaker_open_seconds=5)
    await desk.attempt(DOWN)
    desk.clock.now = 5.0
    await desk.attempt(DOWN)
    assert desk.said[-1] == (HERE, BreakerState.OPEN, 10.0)


@pytest.mark.parametrize(("one_fails_of", "trips_after"), [(1, 20), (2, 63)])
async def test_an_origin_that_has_answered_for_long_is_left_alone_as_soon_as_any_other(
    one_fails_of: int, trips_after: int
) -> None:
    desk = Desk(breaker_failures=20)
    with ExitStack() as stack:
        # This place stays taken, so the origin's state is not forgotten.
        stack.enter_context(await desk.destinations.place(HERE, SIZE))
        for _ in range(200):
            await desk.attempt(OK)
        attempts = 0
        while not desk.said:
            await desk.attempt(OK if attempts % one_fails_of else DOWN)
            attempts += 1
    assert attempts == trips_after


async def test_each_429_halves_the_attempts_at_once_and_each_answer_adds_one() -> None:
    desk = Desk(destination_concurrency=16)
    for outcome, allowed in ((SLOW_DOWN, 8), (SLOW_DOWN, 4), (OK, 5), (SLOW_DOWN, 2), (SLOW_DOWN, 1), (SLOW_DOWN, 1)):
        await desk.attempt(outcome)
        with ExitStack() as stack:
            assert await desk.places(stack) == allowed


async def test_a_retry_after_holds_the_whole_origin_for_an_hour_at_most() -> None:
    desk = Desk()
    await desk.attempt(FailedDelivery(FailureReason.THROTTLED, 0.1, 429, 86_400.0))
    with pytest.raises(OriginLeftAlone) as busy:
        await desk.attempt(OK)
    assert busy.value.wait_seconds == 3600
    desk.clock.now = 3600.0
    await desk.attempt(OK)


async def test_waiters_for_a_place_are_refused_when_the_breaker_opens() -> None:
    desk = Desk(breaker_failures=1, breaker_open_seconds=7, destination_concurrency=1, destination_queue_records=5)
    with await desk.destinations.place(HERE, SIZE) as place:
        waiting = [asyncio.ensure_future(desk.attempt(OK)) for _ in range(3)]
        await asyncio.sleep(0)
        assert desk.destinations.held == 4
        place.outcome = DOWN
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [error.wait_seconds for error in ended if isinstance(error, OriginLeftAlone)] == [7.0] * 3
    assert desk.destinations.held == 0


async def test_a_waiter_that_is_cancelled_as_the_breaker_opens_leaves_nothing_behind() -> None:
    desk = Desk(breaker_failures=1, destination_concurrency=1, destination_queue_records=5)
    with await desk.destinations.place(HERE, SIZE) as place:
        waiting = asyncio.ensure_future(desk.attempt(OK))
        await asyncio.sleep(0)
        place.outcome = DOWN
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert desk.destinations.held == 0


async def test_a_bounded_number_of_idle_origins_is_remembered() -> None:
    desk = Desk()
    for number in range(10_050):
        await desk.attempt(DOWN, ("acme", f"https://{number}.example"))
    assert len(desk.destinations) == 10_000


async def test_origins_that_are_turned_away_are_not_remembered() -> None:
    desk = Desk()
    with ExitStack() as stack:
        taken = [await desk.places(stack, ("acme", f"https://x{number}.example")) for number in range(12_000)]
        assert len(desk.destinations) == sum(count > 0 for count in taken) <= desk.destinations.held
    assert len(desk.destinations) == 0


async def test_a_tenant_s_many_origins_that_fail_do_not_push_out_the_breaker_of_another_tenant() -> None:
    desk = Desk(breaker_failures=1, breaker_open_seconds=40)
    await desk.attempt(DOWN, ("other", HERE[1]))
    for number in range(12_000):
        await desk.attempt(DOWN, ("acme", f"https://{number}.example"))
    with ExitStack() as stack:
        for number in range(12_000):
            await desk.places(stack, ("globex", f"https://{number}.example"))
    with pytest.raises(OriginLeftAlone):
        await desk.attempt(OK, ("other", HERE[1]))


async def test_the_state_of_an_origin_outlives_its_records_in_the_window() -> None:
    desk = Desk(breaker_failures=2)
    await desk.attempt(DOWN)
    with await desk.destinations.place(HERE, SIZE) as place:
        assert len(desk.destinations) == 1
        place.outcome = DOWN
    assert desk.said == [(HERE, BreakerState.OPEN, 5.0)]
    assert len(desk.destinations) == 1


async def test_an_origin_without_a_place_gets_one_when_others_of_its_tenant_end() -> None:
    desk, turns = Desk(window_records=30), []
    with ExitStack() as stack:
        with await desk.destinations.place(("acme", "https://first.example"), SIZE):
            for number in range(30):
                await desk.places(stack, ("acme", f"https://x{number}.example"))
            desk.clock.now = 6.0
        await desk.places(stack, ("acme", "https://next.example"))
        for number in range(3):
            with pytest.raises(DestinationBusy) as busy:
                await desk.attempt(OK, ("acme", f"https://y{number}.example"))
            turns.append(busy.value.turn_seconds)
    assert turns == [6.0, 12.0, 18.0]


async def test_many_answering_origins_of_one_tenant_do_not_make_anothers_origin_a_stranger() -> None:
    desk = Desk(window_records=90)
    await desk.attempt(OK)
    for number in range(12_000):
        await desk.attempt(OK, ("other", f"https://{number}.example"))
    with ExitStack() as stack:
        for number in range(100):
            await desk.places(stack, ("acme", f"https://x{number}.example"))
        assert await desk.places(stack) > 0
        assert await desk.places(stack, ("acme", "https://y.example")) == 0
