"""The slots of a server: slots given in the order of requests, a limit that changes, and cancelled waits."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import drawn
from workers.engines.openai_http.limits import FIRST, QUEUE_LOOKS, ServerLoad
from workers.engines.openai_http.slots import Slots


class Shown:
    total = 0.0

    def __call__(self, difference: float) -> None:
        self.total += difference


async def held(slots: Slots, begun: list[int], number: int, free: asyncio.Event) -> None:
    async with slots.slot():
        begun.append(number)
        await free.wait()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_requests_beyond_the_limit_get_their_turn_in_the_order_of_the_calls() -> None:
    slots, begun, free = Slots(256, Shown()), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(held(slots, begun, number, free)) for number in range(FIRST + 5)]
    await settled()
    assert (begun, slots.taken) == ([*range(FIRST)], FIRST)
    free.set()
    await asyncio.gather(*tasks)
    assert (begun, slots.taken) == ([*range(FIRST + 5)], 0)


async def test_a_raised_limit_lets_waiting_requests_begin_at_once() -> None:
    slots, begun, free = Slots(256, Shown()), list[int](), asyncio.Event()
    tasks = [asyncio.create_task(held(slots, begun, number, free)) for number in range(40)]
    await settled()
    slots.told(ServerLoad(FIRST, 0))
    await settled()
    assert (len(begun), slots.taken) == (40, 40)
    free.set()
    await asyncio.gather(*tasks)


async def test_a_lowered_limit_begins_no_request_until_enough_have_ended() -> None:
    slots, begun = Slots(256, Shown()), list[int]()
    frees = [asyncio.Event() for _ in range(FIRST + 1)]
    tasks = [asyncio.create_task(held(slots, begun, number, free)) for number, free in enumerate(frees)]
    await settled()
    slots.refused(slots.begin())
    for free in frees[: FIRST // 2]:
        free.set()
    await settled()
    assert FIRST not in begun
    for free in frees[FIRST // 2 :]:
        free.set()
    await asyncio.gather(*tasks)
    assert FIRST in begun


async def test_only_answers_while_all_slots_are_taken_raise_the_limit() -> None:
    slots = Slots(256, Shown())
    for _ in range(100):
        async with slots.slot():
            slots.answered()
    assert slots.places == FIRST


async def test_the_limit_is_shown_from_the_opening_to_the_close() -> None:
    shown = Shown()
    one, other = Slots(256, shown), Slots(4, shown)
    one.open()
    other.open()
    assert shown.total == FIRST + 4
    async with one.slot():
        for _ in range(QUEUE_LOOKS):
            one.told(ServerLoad(0, 0))
        assert shown.total == 256 + 4
    one.close()
    assert shown.total == 4


@settings(max_examples=drawn(60))
@given(st.integers(0, 2**32), st.integers(1, 20))
def test_cancelled_waits_lose_no_slot_and_no_limit_is_exceeded(seed: int, most: int) -> None:
    """A random walk: requests begin, end, are cancelled or refused, in any order."""
    chance = random.Random(seed)

    async def walk() -> None:
        slots, frees, tasks = Slots(most, Shown()), list[asyncio.Event](), list[asyncio.Task[None]]()
        for _ in range(200):
            event = chance.choice(["begin", "begin", "end", "cancel", "refused", "rest"])
            if event == "begin":
                before = slots.taken
                frees.append(asyncio.Event())
                tasks.append(asyncio.create_task(held(slots, [], 0, frees[-1])))
                await asyncio.sleep(0)
                assert slots.taken <= max(before, most)
            elif event == "end" and frees:
                chance.choice(frees).set()
            elif event == "cancel" and tasks:
                chance.choice(tasks).cancel()
            elif event == "refused":
                slots.refused(slots.begin())
            else:
                await asyncio.sleep(0)
        for free in frees:
            free.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert slots.taken == 0

    asyncio.run(walk())
