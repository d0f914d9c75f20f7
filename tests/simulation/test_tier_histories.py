"""Delivery's tiers in drawn histories: each event ends once, after the attempts and waits that the schedule promises.

POSTBACK_HISTORIES sets the number of histories; a failing one prints its seed and its text.
"""

from __future__ import annotations

import os
import random
from itertools import pairwise

import pytest

from schemas.topics import TIER_DELAYS_SECONDS, hop, tiers_of
from telemetry.clock import SystemClock
from tests.simulation.history import silent
from tests.simulation.tier_history import CLOCKS_DIFFER_SECONDS, GONE, REFUSED, Attempt, TierHistory
from workers.delivery.keyring import Keyring
from workers.delivery.post import Delivered, FailedDelivery

HISTORIES = int(os.environ.get("POSTBACK_HISTORIES", "60"))
SMALLEST = min(TIER_DELAYS_SECONDS)
TIERS = tiers_of(TIER_DELAYS_SECONDS)
LAST = len(TIER_DELAYS_SECONDS) + 1
"""The number of the last attempt."""
JITTER = 0.1
SLACK = 0.02


@pytest.fixture(scope="module")
def keyring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring.create(tmp_path_factory.mktemp("keys") / "keyring.json", SystemClock())


@pytest.mark.parametrize("set_clocks", [False, True], ids=["clocks jump for minutes", "clocks are set wrong"])
def test_each_event_ends_once_after_the_attempts_of_the_schedule(keyring: Keyring, set_clocks: bool) -> None:
    for seed in range(HISTORIES):
        drawn = TierHistory(random.Random(seed), keyring, set_clocks=set_clocks)
        try:
            with silent():
                drawn.run()
            for event in drawn.ends:
                verify(drawn, event)
        except Exception as error:
            error.add_note("\n".join([*drawn.told, f"the seed is {seed}"]))
            raise


def verify(drawn: TierHistory, event: str) -> None:
    """Compare an event's end and its attempts with the promises."""
    attempts = drawn.attempts[event]
    assert [one.number for one in attempts] == list(range(1, len(attempts) + 1)), f"{event}: an attempt is skipped"
    assert len(drawn.ends[event]) == 1, f"{event} ends as {drawn.ends[event]}"
    (end,) = drawn.ends[event]
    last = attempts[-1].outcome if attempts else None
    assert end in reasons(last, len(attempts), drawn.letters.get(event, "")), f"{event} ends as {end} after {last}"
    for before, after in pairwise(attempts):
        verify_wait(drawn, before, after, f"{event}: attempt {after.number}")


def reasons(last: object, attempts: int, detail: str) -> set[str]:
    """Return the possible ends of an event after its last attempt."""
    if isinstance(last, Delivered):
        return {"delivered"}
    if last == GONE:
        return {"endpoint_gone"}
    if last == REFUSED:
        return {"callback_refused"}
    exhausted = attempts == LAST or "its origin fails at each try" in detail
    return {"callback_exhausted"} if exhausted else {"endpoint_disabled"}


def verify_wait(drawn: TierHistory, before: Attempt, after: Attempt, what: str) -> None:
    """Compare the wait between two attempts with the schedule and the endpoint's Retry-After."""
    assert isinstance(before.outcome, FailedDelivery)
    delay, waited = TIER_DELAYS_SECONDS[before.number - 1], after.at - before.at
    slack = max(SLACK * delay, 0.1 * SMALLEST)
    asked = before.outcome.retry_after_seconds or 0.0
    shortest = max(delay - slack, asked)
    longest = max(delay * (1 + JITTER), asked + slack) + SMALLEST
    if drawn.set_clocks:
        shortest, longest = 0.0, (1 + drawn.sets) * longest + CLOCKS_DIFFER_SECONDS
    elif drawn.jumped(before.at, after.at):
        shortest, longest = hop(round(1000 * shortest), TIERS), 2 * longest + CLOCKS_DIFFER_SECONDS
    assert waited >= shortest - drawn.differ - 0.1, f"{what} comes after {waited:.1f} s, not {shortest:.1f}"
    longest += 3 * drawn.differ + drawn.alone(before.at, after.at)
    if after.deferred == before.deferred:
        assert waited <= longest + 0.1, f"{what} comes after {waited:.1f} s, not {longest:.1f}"
