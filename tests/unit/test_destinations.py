"""Which origin may be called now: destinations with breakers, estimates, deadlines and slow consumers."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import pairwise

import aiohappyeyeballs
import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.topics import TIER_DELAYS_SECONDS
from telemetry.hand_clock import SetClock
from tests.drawn import drawn
from tests.open_files import no_files_left
from tests.virtual_time import LoopClock, VirtualLoop, in_virtual_time
from workers.delivery.breaker import Breaker, BreakerState, OriginSignal, asked_to_wait, signal_of
from workers.delivery.destinations import (
    AttemptSlot,
    Destination,
    DestinationBusy,
    Destinations,
    OriginLeftAlone,
    QueueEstimate,
    RateLimit,
    RateLimited,
    TurnedAway,
)
from workers.delivery.post import Deadlines, Delivered, FailedDelivery, FailureReason, PostOutcome, exhausted_by
from workers.delivery.retries import Schedule, busy_tier
from workers.delivery.settings import DeliverySettings
from workers.delivery.tenant_lru import TenantLru
from workers.stage.transactions import LINGER_SECONDS
from workers.system.tuning import allow_open_files

# -- destinations ----------------------------------------------------------------------------------------------------
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
    assert busy.value.wait_seconds == desk.destinations.left_alone_seconds(HERE) == 30
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
        assert busy.value.wait_seconds == pytest.approx(
            0.1
        )  # a probe is expected to take as long as the last failed attempt
        probe.outcome = OK
    assert [state for _, state, _ in desk.said] == [BreakerState.OPEN, BreakerState.CLOSED]
    for allowed in (2, 3, 4, 4):
        with ExitStack() as stack:
            assert await desk.places(stack) == allowed
        await desk.attempt(OK)
    assert len(desk.destinations) == 0


@pytest.mark.parametrize(
    ("probes", "said"),
    [([None, OK], (BreakerState.CLOSED, 0.0)), ([DOWN], (BreakerState.OPEN, 10.0))],
    ids=["one that is cut off is made by the next", "one that fails opens the breaker for twice as long"],
)
async def test_a_probe_ends_the_open_time_of_the_breaker_or_doubles_it(
    probes: list[PostOutcome | None], said: tuple[BreakerState, float]
) -> None:
    desk = Desk(breaker_failures=1, breaker_open_seconds=5)
    await desk.attempt(DOWN)
    desk.clock.now = 5.0
    for outcome in probes:
        await desk.attempt(outcome)
    assert desk.said[-1] == (HERE, *said)


async def test_records_wait_for_the_outcome_of_a_probe_that_is_expected_to_end_soon() -> None:
    desk = Desk(breaker_failures=1, breaker_open_seconds=5, destination_queue_records=5)
    await desk.attempt(DOWN)
    for at, outcome in ((5.0, DOWN), (15.0, OK)):
        desk.clock.now = at
        with await desk.destinations.place(HERE, SIZE) as probe:
            waiting = [asyncio.ensure_future(desk.attempt(OK)) for _ in range(3)]
            await asyncio.sleep(0)
            assert desk.destinations.held == 4
            probe.outcome = outcome
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in ended] == [OriginLeftAlone if outcome is DOWN else type(None)] * 3


async def test_a_record_that_spares_its_attempt_leaves_the_probe_to_another_for_as_long_as_one_is_expected() -> None:
    desk = Desk(breaker_failures=1, breaker_open_seconds=5)
    await desk.attempt(DOWN)
    for at, spares in ((1.0, False), (5.0, True), (5.0, True)):
        desk.clock.now = at
        with pytest.raises(OriginLeftAlone):
            await desk.destinations.place(HERE, SIZE, spares=spares)
    await desk.attempt(DOWN)
    desk.clock.now = 50.0
    with await desk.destinations.place(HERE, SIZE, spares=True) as place:
        assert place.probe


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
    assert desk.said == [(HERE, BreakerState.OPEN, 1.0)]
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


# -- breaker ---------------------------------------------------------------------------------------------------------
SETTINGS = DeliverySettings(
    breaker_failures=3, breaker_failure_share=0.5, breaker_open_seconds=5, breaker_longest_seconds=18
)


def breaker_that_saw(text: str) -> Breaker:
    """A breaker after these attempts: `o` is an answer, `x` a failure, and `-` counts as neither."""
    breaker, _ = played(text)
    return breaker


def probe(breaker: Breaker, now: float, verdict: OriginSignal) -> None:
    assert breaker.take_probe(now)
    breaker.judge(verdict, now, probe=True)


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        ("", BreakerState.CLOSED),
        ("xx", BreakerState.CLOSED),
        ("xxx", BreakerState.OPEN),
        ("xxoxx", BreakerState.CLOSED),
        ("xx-x", BreakerState.OPEN),
        ("xx" + "-" * 99, BreakerState.CLOSED),
        ("xxo" * 10, BreakerState.CLOSED),  # 20 of 30 attempts fail, but the share counts only from 64 attempts on
        ("ox" * 31, BreakerState.CLOSED),
        ("ox" * 32, BreakerState.OPEN),
        ("oox" * 40, BreakerState.CLOSED),
        ("o" * 500 + "xx", BreakerState.CLOSED),
        ("o" * 500 + "ox" * 32, BreakerState.OPEN),
    ],
)
def test_failures_in_a_row_or_too_large_a_share_of_the_last_64_open_the_breaker(seen: str, state: BreakerState) -> None:
    assert breaker_that_saw(seen).state(0.0) is state


def played(script: str) -> tuple[Breaker, float]:
    """A breaker after a script, and the time at its end: `@5` sets the time, and `Px` is a probe that fails."""
    breaker, now = Breaker(SETTINGS), 0.0
    verdicts = {"o": OriginSignal.ANSWERS, "x": OriginSignal.FAILS, "-": OriginSignal.NOTHING}
    for step in script.split():
        if step[0] == "@":
            now = float(step[1:])
        elif step[0] == "P":
            probe(breaker, now, verdicts[step[1]])
        else:
            for letter in step:
                breaker.judge(verdicts[letter], now, probe=False)
    return breaker, now


@pytest.mark.parametrize(
    ("script", "state", "seconds_left", "dead"),
    [
        ("@100 xxx @102", BreakerState.OPEN, 3, False),
        ("@100 xxx @105", BreakerState.HALF_OPEN, 0, False),
        # Attempts under way at the opening neither close the breaker nor prolong its time.
        ("xxx @1 o @2 x", BreakerState.OPEN, 3, False),
        # A probe that is answered closes the breaker; one that the guard refuses proves nothing.
        ("xxx @5 Po", BreakerState.CLOSED, 0, False),
        ("xxx @5 P-", BreakerState.HALF_OPEN, 0, False),
        # Each probe that fails doubles the time up to the longest; then the origin is dead until the next probe is due.
        ("xxx", BreakerState.OPEN, 5, False),
        ("xxx @5 Px", BreakerState.OPEN, 10, False),
        ("xxx @5 Px @14.5", BreakerState.OPEN, 0.5, False),
        ("xxx @5 Px @15 Px", BreakerState.OPEN, 18, True),
        ("xxx @5 Px @15 Px @32.5", BreakerState.OPEN, 0.5, True),
        ("xxx @5 Px @15 Px @33", BreakerState.HALF_OPEN, 0, False),
        ("xxx @5 Px @15 Px @33 Px", BreakerState.OPEN, 18, True),
        ("xxx @5 Px @15 Px @33 Px @51 Po", BreakerState.CLOSED, 0, False),
        # After the breaker has closed, the open time starts small again.
        ("xxx @5 Px @15 Po @20 xxx", BreakerState.OPEN, 5, False),
    ],
)
def test_a_breaker_is_open_for_a_time_and_then_closed_or_opened_by_one_probe(
    script: str, state: BreakerState, seconds_left: float, dead: bool
) -> None:
    breaker, now = played(script)
    assert (breaker.state(now), breaker.seconds_left(now), breaker.is_dead(now)) == (state, seconds_left, dead)
    assert breaker.pristine is (script == "xxx @5 Po" or script.endswith("@51 Po"))
    assert breaker.take_probe(now) is (state is BreakerState.HALF_OPEN)


def test_a_half_open_breaker_allows_one_probe_at_a_time() -> None:
    breaker = breaker_that_saw("xxx")
    assert [breaker.take_probe(5.0) for _ in range(3)] == [True, False, False]
    breaker.give_back_probe()
    assert [breaker.take_probe(5.0) for _ in range(2)] == [True, False]


def test_one_retry_after_opens_the_breaker_for_the_requested_time() -> None:
    breaker = breaker_that_saw("oooo")
    breaker.judge(OriginSignal.FAILS, 10.0, probe=False, wait_seconds=3600.0)
    breaker.judge(OriginSignal.FAILS, 11.0, probe=False, wait_seconds=1.0)  # the later, shorter wait changes nothing
    assert breaker.seconds_left(10.0) == 3600.0
    probe(breaker, 3610.0, OriginSignal.ANSWERS)
    assert breaker.state(3610.0) is BreakerState.CLOSED


@pytest.mark.parametrize("reason", list(FailureReason))
def test_an_origin_that_answers_is_up_whatever_its_status(reason: FailureReason) -> None:
    expected = {
        FailureReason.REFUSED: OriginSignal.NOTHING,
        FailureReason.GONE: OriginSignal.ANSWERS,
        FailureReason.CLIENT_ERROR: OriginSignal.ANSWERS,
        FailureReason.REDIRECTED: OriginSignal.ANSWERS,
    }
    assert signal_of(FailedDelivery(reason, 0.1)) is expected.get(reason, OriginSignal.FAILS)
    assert signal_of(Delivered(204, 0.1)) is OriginSignal.ANSWERS


@pytest.mark.parametrize(
    ("reason", "seconds"),
    [(FailureReason.THROTTLED, 60.0), (FailureReason.SERVER_ERROR, 60.0), (FailureReason.CLIENT_ERROR, 0.0)],
)
def test_retry_after_of_a_429_or_5xx_is_for_the_whole_origin(reason: FailureReason, seconds: float) -> None:
    assert asked_to_wait(FailedDelivery(reason, 0.1, 429, 60.0)) == seconds
    assert asked_to_wait(FailedDelivery(reason, 0.1, 429, None)) == 0.0


@pytest.mark.parametrize(
    ("asked", "at", "seconds"),
    [
        (0.0, 0.0, 5.0),
        (0.0, 4.0, 1.0),
        (0.0, 5.0, 0.0),
        (3600.0, 0.0, 3600.0),
        (3600.0, 3599.0, 1.0),
        (3600.0, 3600.0, 0.0),
    ],
)
def test_a_refused_record_waits_until_the_next_probe(asked: float, at: float, seconds: float) -> None:
    breaker = breaker_that_saw("xx")
    breaker.judge(OriginSignal.FAILS, 0.0, probe=False, wait_seconds=asked)
    assert breaker.patience(at) == seconds


def test_refused_records_wait_for_a_hung_probe_as_long_as_the_last_failure_took() -> None:
    breaker = breaker_that_saw("xx")
    breaker.judge(OriginSignal.FAILS, 0.0, probe=False, took_seconds=20.0)
    assert breaker.patience(4.0) == 1.0
    assert breaker.take_probe(5.0)
    assert [breaker.patience(at) for at in (5.0, 10.0, 21.0, 25.0)] == [20.0, 15.0, 4.0, 0.0]
    breaker.judge(OriginSignal.FAILS, 6.0, probe=True, took_seconds=1.0)
    assert breaker.take_probe(16.0)
    assert breaker.patience(16.0) == 1.0


@pytest.mark.parametrize(("asked", "dead"), [(0.0, True), (17.0, True), (60.0, False)])
def test_an_origin_that_asks_for_a_longer_pause_than_usual_is_not_dead(asked: float, dead: bool) -> None:
    breaker = breaker_that_saw("xxx")
    for at in (5.0, 15.0, 33.0):
        assert breaker.take_probe(at)
        breaker.judge(OriginSignal.FAILS, at, probe=True, wait_seconds=asked if at == 33.0 else 0.0)
    assert breaker.is_dead(34.0) is dead
    assert breaker.seconds_left(33.0) == max(18.0, asked)


# -- queue estimate --------------------------------------------------------------------------------------------------
def crowd_of(
    away_each_second: int, served_each_second: int, seconds: int, start: int = 0
) -> tuple[QueueEstimate, list[float]]:
    """The estimate, and the wait that the last turned-away callback of each second gets."""
    crowd, told = QueueEstimate(), []
    for second in range(start, start + seconds):
        for _ in range(served_each_second):
            crowd.serve(float(second))
        told.append([crowd.turn_away(float(second)) for _ in range(away_each_second)][-1])
    return crowd, told


def test_the_estimate_of_a_new_crowd_and_without_served_records_is_unknown() -> None:
    assert crowd_of(100, 10, 5)[1] == [0.0] * 5
    assert set(crowd_of(100, 0, 100)[1]) == {0.0}


def test_the_last_one_s_turn_comes_when_all_are_served_that_were_turned_away_in_its_round() -> None:
    _, told = crowd_of(100, 10, 200)
    for start in range(10, 200, 5):
        rounds = told[start : start + 5]
        assert rounds == sorted(rounds)
        assert 8 < rounds[0] < 13
        assert 45 < rounds[-1] < 60


def test_a_crowd_after_a_pause_is_a_new_one() -> None:
    crowd, told = crowd_of(100, 10, 20)
    assert told[-1] > 0
    assert crowd.turn_away(35.0) == 0.0


def test_faster_service_shortens_the_estimate_within_a_minute_or_two() -> None:
    crowd, _ = crowd_of(100, 10, 200)
    for second in range(200, 320):
        for _ in range(100):
            crowd.serve(float(second))
        told = [crowd.turn_away(float(second)) for _ in range(100)]
    assert told[-1] < 10


# -- tenant lru ------------------------------------------------------------------------------------------------------
KEYS = st.tuples(st.sampled_from("abc"), st.sampled_from("1234567"))
LRU_STEPS = st.lists(st.tuples(st.sampled_from(["put", "put", "get", "pop"]), KEYS), min_size=20, max_size=200)


def script(text: str) -> list[tuple[str, tuple[str, str]]]:
    """The steps of a text: `m1` puts a value of the tenant `m`, and `?m1` gets it."""
    steps = [("get", word[1:]) if word.startswith("?") else ("put", word) for word in text.split()]
    return [(step, (key[0], key[1:])) for step, key in steps]


# The largest tenant `m` loses its least recently used value, `m2`.
@example(most=4, steps=script("m1 m2 m3 f1 ?m1 o1 ?f1 ?o1"))
# A new value of the largest tenant replaces its own oldest, and never the only value of `f`.
@example(most=10, steps=script(" ".join(["f1", *(f"m{number}" for number in range(1000))])))
@given(most=st.integers(1, 8), steps=LRU_STEPS)
def test_the_cache_is_a_plain_mapping_that_drops_the_oldest_value_of_the_largest_tenant(
    most: int, steps: list[tuple[str, tuple[str, str]]]
) -> None:
    remembered, plain = TenantLru[int](most), OrderedDict[tuple[str, str], int]()
    for number, (step, key) in enumerate(steps):
        if step == "put":
            before = set(plain)
            remembered.put(key, number)
            plain[key] = number
            plain.move_to_end(key)
            if len(plain) > most:
                held = {tenant: sum(one == tenant for one, _ in plain) for tenant, _ in plain}
                [gone] = [one for one in plain if one not in remembered]
                assert held[gone[0]] == max(held.values())
                assert gone == next(one for one in plain if one[0] == gone[0])
                assert gone in before | {key}
                del plain[gone]
        elif step == "get":
            assert remembered.get(key) == plain.get(key)
            if key in plain:
                plain.move_to_end(key)
        else:
            assert remembered.pop(key) == plain.pop(key, None)
        assert len(remembered) == len(plain)
        assert all(one in remembered for one in plain)


# -- deadlines -------------------------------------------------------------------------------------------------------
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


# -- slow consumers --------------------------------------------------------------------------------------------------
WAITS = Schedule(TIER_DELAYS_SECONDS).waits
# With 1/32 of the usual limits, 1/32 of a backlog takes as long as the whole backlog, and is faster to simulate.
PATIENT = DeliverySettings(destination_concurrency=2, destination_queue_records=64, window_records=128)
A_QUARTER = DeliverySettings(destination_concurrency=16, destination_queue_records=512, window_records=1024)


@dataclass
class Consumer:
    """A consumer that takes a constant time for each event; events that get no place wait in a tier and ask again."""

    takes_seconds: float
    settings: DeliverySettings = PATIENT
    limit: RateLimit | None = None
    began: list[float] = field(default_factory=list)
    """Times of the attempts, in order."""
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
                with await self.destinations.place(HERE, 2_000, limit=self.limit) as place:
                    self.began.append(asyncio.get_running_loop().time())
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


# -- exhaustion ------------------------------------------------------------------------------------------------------
KEY = ConnectionKey("hooks.example", 443, True, True, None, None, None)


def failed(number: int) -> aiohttp.ClientConnectorError:
    return aiohttp.ClientConnectorError(KEY, OSError(number, os.strerror(number)))


def test_an_error_of_our_kernel_is_ours_and_one_of_the_network_is_not() -> None:
    ours = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
    assert [exhausted_by(failed(number)) for number in ours] == [errno.errorcode[number] for number in ours]
    theirs = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNRESET)
    with no_files_left():
        assert [exhausted_by(failed(number)) for number in theirs] == [None] * 4


def failed_in_two_ways() -> aiohttp.ClientConnectorError:
    """The error for a name with two addresses: one refuses the connection, the other has no route."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        hosts = ("127.0.0.1", "255.255.255.255")
        addresses = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port)) for host in hosts]
        with pytest.raises(OSError, match="Multiple exceptions") as said:
            asyncio.run(aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=0.25))
    return aiohttp.ClientConnectorError(KEY, said.value)


@pytest.mark.parametrize(
    "fail",
    [
        lambda: failed(errno.EADDRNOTAVAIL),
        lambda: aiohttp.ClientConnectorDNSError(KEY, OSError(None, "could not contact DNS servers")),
        failed_in_two_ways,
    ],
    ids=["no-address", "dns", "two-ways"],
)
def test_an_ambiguous_error_is_ours_if_we_can_open_no_socket(
    fail: Callable[[], aiohttp.ClientConnectorError],
) -> None:
    error = fail()
    assert exhausted_by(error) is None
    with no_files_left():
        assert exhausted_by(error) == "EMFILE"


def test_a_process_has_as_many_open_files_as_it_may() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        allow_open_files()
        most = 1 << 20
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most if hard < 0 else min(hard, most), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- rate limits -----------------------------------------------------------------------------------------------------
def limited(per_second: float, endpoint: str = "we_1") -> RateLimit:
    return RateLimit(("acme", endpoint), per_second)


def verify_spaced(began: list[float], per_second: float) -> None:
    """Compare the times of a limited endpoint's attempts with the promise."""
    assert all(after - before >= 1 / per_second - 1e-6 for before, after in pairwise(began))


@given(st.floats(0.5, 200), st.integers(1, 150), st.floats(0, 3), st.booleans())
@settings(max_examples=drawn(40), deadline=None)
def test_a_limited_endpoint_is_never_called_faster_and_each_event_is_delivered(
    per_second: float, backlog: int, takes_seconds: float, after_an_outage: bool
) -> None:
    """The consumer's breaker, places and queue hold events up too; still no two attempts come closer together."""
    consumer = Consumer(takes_seconds, A_QUARTER, limited(per_second))
    consumer.empty(backlog, after_an_outage=after_an_outage)
    assert len(consumer.delivered) == backlog
    verify_spaced(consumer.began, per_second)


def test_a_backlog_of_a_limited_endpoint_uses_its_rate_and_is_not_rewritten_every_few_seconds() -> None:
    consumer = Consumer(0.1, DeliverySettings(), limited(5))
    consumer.empty(1_500)
    assert consumer.delivered[1_000] < 1_000 / 5 * 1.15 + 15
    assert consumer.delivered[-1] < 1_500 / 5 + 310
    assert consumer.writes < 30 * 1_500


@in_virtual_time
async def test_a_flood_at_a_limited_endpoint_delays_no_other_origin_and_few_events_of_its_own() -> None:
    destinations, loop = Destinations(DeliverySettings(), LoopClock()), asyncio.get_running_loop()
    began: list[float] = []

    async def attempt(destination: Destination, limit: RateLimit | None) -> str:
        try:
            with await destinations.place(destination, SIZE, limit=limit) as place:
                began.append(loop.time())
                place.outcome = OK
        except RateLimited:
            return "deferred"
        return "attempted"

    flood = [asyncio.create_task(attempt(HERE, limited(2))) for _ in range(5_000)]
    await asyncio.sleep(0)
    for other in (("acme", "https://b.example"), ("other", HERE[1]), HERE):
        assert await attempt(other, None) == "attempted"
    assert await attempt(HERE, limited(2, "we_2")) == "attempted"
    assert loop.time() == 0
    said = await asyncio.gather(*flood)
    assert (said.count("attempted"), said.count("deferred")) == (13, 4_987)  # at 0, 0.5, … 6 seconds
    assert destinations.held == 0


@in_virtual_time
async def test_records_that_queued_for_a_place_do_not_hold_it_for_longer_than_a_deferral() -> None:
    """Another endpoint of the origin uses all places for three seconds, while records of the limited one queue."""
    destinations, loop = Destinations(DeliverySettings(), LoopClock()), asyncio.get_running_loop()

    async def busy() -> None:
        with await destinations.place(HERE, SIZE) as place:
            await asyncio.sleep(3)
            place.outcome = OK

    async def attempt() -> float | None:
        try:
            with await destinations.place(HERE, SIZE, limit=limited(1)) as place:
                place.outcome = OK
                return loop.time()
        except RateLimited:
            return None

    holding = [asyncio.create_task(busy()) for _ in range(DeliverySettings().destination_concurrency)]
    await asyncio.sleep(0)
    times = await asyncio.gather(*(attempt() for _ in range(64)))
    await asyncio.gather(*holding)
    assert sorted(each for each in times if each is not None) == [3, 4, 5, 6, 7, 8, 9]
    assert destinations.held == 0


@in_virtual_time
async def test_attempts_that_wait_for_their_time_are_not_made_once_the_breaker_has_opened() -> None:
    destinations = Destinations(DeliverySettings(breaker_failures=1), LoopClock())
    waiting = [asyncio.create_task(destinations.place(HERE, SIZE, limit=limited(1))) for _ in range(4)]
    with await waiting[0] as place:
        place.outcome = DOWN
    for task in waiting[1:]:
        with pytest.raises(OriginLeftAlone):
            await task
    assert destinations.held == 0


@in_virtual_time
async def test_an_attempt_that_is_cancelled_while_it_waits_gives_its_place_back() -> None:
    destinations = Destinations(DeliverySettings(), LoopClock())
    first, second = (asyncio.create_task(destinations.place(HERE, SIZE, limit=limited(1))) for _ in range(2))
    with await first as place:
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        place.outcome = OK
    assert destinations.held == 0


@pytest.mark.parametrize(
    "origin", ["hooks.example", "https://hooks.example/in", "https://Hooks.example", "https://h.example:443"]
)
def test_a_rate_limit_is_set_for_an_origin_in_its_normal_form(origin: str) -> None:
    with pytest.raises(ValueError, match="not an origin: write scheme and host in lower case"):
        DeliverySettings(origin_rate_limits={origin: 10})
