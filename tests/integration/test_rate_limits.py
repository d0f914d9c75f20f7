"""A rate limit on a real broker: a flood of callbacks is spaced, and other origins get theirs at once."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.fleet_here import FleetHere
from tests.product import Callbacks, eventually

pytestmark = pytest.mark.broker

A_SECOND = 4.0
FLOOD = 60


def test_callbacks_beyond_an_origins_rate_limit_wait_their_turn_and_hold_up_no_other(fleet_here: FleetHere) -> None:
    slow, fast = fleet_here.callbacks, Callbacks(fleet_here.keyring)
    try:
        slow.up()
        fast.up()
        limits = f'{{"http://127.0.0.1:{slow.port}": {A_SECOND}}}'
        fleet_here.worker("w1", "--engine", "echo", "--with-delivery", POSTBACK_DELIVERY__ORIGIN_RATE_LIMITS=limits)
        flood = [{"job_id": f"slow-{n}", "prompt": "x", "callback_url": slow.url} for n in range(FLOOD)]
        fleet_here.submit(flood)
        fleet_here.wait_for_results(FLOOD, 60)
        fleet_here.submit({"job_id": f"fast-{n}", "prompt": "x", "callback_url": fast.url} for n in range(FLOOD))
        eventually(lambda: len(fast.events) == FLOOD, 60, "a callback to the other origin waits")
        assert len(slow.events) < FLOOD
        fleet_here.wait_for_callbacks(FLOOD, 60)
        fleet_here.wait_until_nothing_is_left()
    finally:
        fast.end()

    began = sorted(one["at"] for one in fleet_here.attempts() if one["job_id"].startswith("slow"))
    assert len(began) == FLOOD
    assert all(after - before >= 1000 / A_SECOND - 50 for before, after in pairwise(began))
    assert {len(events) for events in (*slow.events.values(), *fast.events.values())} == {1}
    assert fleet_here.dead_letters() == []
