"""A receiver is down for a week, shortened to under half a minute, and delivery processes are killed all the time.

One endpoint comes back after a day. This endpoint first refuses connections, then accepts them without an answer, then
answers 503 with Retry-After. After that, the events that wait for this endpoint in the tiers are delivered. The other
endpoint stays down: its first events use up all their attempts, and then delivery disables the endpoint. The events of
this endpoint become dead letters, and a redrive delivers them. No event is lost, and no attempt skipped.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from devkit.receiver import Behaviour
from schemas.topics import DEFERRED
from tests.messages import headers_of, key_of
from tests.postback_command import environment_of, postback_here, started
from tests.product import Callbacks, Product, Role, eventually

pytestmark = pytest.mark.broker

TIERS = (0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 2.0)
"""Nine waits, as in the default schedule."""
BREAKER = {
    "POSTBACK_DELIVERY__BREAKER_FAILURES": "4",
    "POSTBACK_DELIVERY__BREAKER_OPEN_SECONDS": "0.3",
    "POSTBACK_DELIVERY__BREAKER_LONGEST_SECONDS": "0.8",
    "POSTBACK_DELIVERY__DEADLINE_SECONDS": "1",
}
"""The breaker stays open for up to several of the smallest waits, so events for its origin are deferred untried."""
DISABLED_SOON = {"POSTBACK_DELIVERY__DISABLE_AFTER_SECONDS": "2"}
"""Settings of delivery at the week's end. Before the end, these settings would end events before the last attempt."""
KILL_EVERY_RECORDS = 6
REDRIVEN_A_SECOND = "6"
"""Rate of the redrive: slow enough that delivery is killed while it runs."""
UNANSWERED = "callback_exhausted, untried"
"""Reason of events that were deferred for longer than the whole schedule, which is short here."""
PATIENCE = Behaviour(status=503, retry_after_seconds=1)


class Killed:
    """Two delivery processes, killed and restarted in turn."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self.settings = dict(BREAKER)
        self._names = itertools.cycle(("d1", "d2"))
        self._roles = {name: self._start(name) for name in ("d1", "d2")}
        self._done = 0
        self.kills: Counter[str] = Counter()
        """Number of kills in each phase; the phase is the argument `meanwhile` of `now_and_then`."""

    def now_and_then(self, meanwhile: str) -> None:
        """Kill one process after each KILL_EVERY_RECORDS more attempts and dead letters."""
        done = len(attempts(self._product)) + len(self._product.dead_letters())
        if done >= self._done + KILL_EVERY_RECORDS:
            self._done = done
            self.one()
            self.kills[meanwhile] += 1

    def one(self) -> None:
        name = next(self._names)
        self._roles[name].kill()
        self._roles[name] = self._start(name)

    def _start(self, name: str) -> Role:
        return self._product.deliver(name, **self.settings)


@pytest.fixture
def product(product_with_tiers: Callable[..., Product]) -> Product:
    return product_with_tiers(*TIERS)


@pytest.fixture
def back_after_a_day(product: Product) -> Iterator[Callbacks]:
    callbacks = Callbacks(product.keyring)
    yield callbacks
    callbacks.end()


def submit(product: Product, callbacks: Callbacks, names: list[str]) -> None:
    product.submit({"job_id": name, "prompt": name, "callback_url": callbacks.url} for name in names)


def reasons(product: Product) -> dict[str, str]:
    """Return the reason of each dead letter, by job."""
    return {letter["job-id"]: reason(letter) for letter in product.dead_letters()}


def reason(letter: dict[str, str]) -> str:
    """The letter's reason, or UNANSWERED for an event that waited too long for a dead origin."""
    untried = "its origin fails at each try" in letter["reason-detail"]
    return UNANSWERED if untried else letter["reason"]


def attempts(product: Product) -> Counter[tuple[str, int]]:
    """Return how many records each attempt of each job has."""
    return Counter((one["job_id"], one["attempt"]) for one in product.attempts())


def deferrals(product: Product) -> Counter[str]:
    """Return how often each job was deferred without an attempt; jobs that never were are left out."""
    found: Counter[str] = Counter()
    for tier in product.kafka.topics.tiers.values():
        for message in product.read(tier):
            name, headers = key_of(message), headers_of(message)
            found[name] = max(found[name], int(headers.get(DEFERRED, 0)))
    return +found


def taken(callbacks: Callbacks) -> set[str]:
    """The jobs whose events were answered with a success."""
    return {name for name, repeats in callbacks.events.items() if any(one.status == 200 for one in repeats)}


def redrive(product: Product, meanwhile: Callable[[], None] = lambda: None) -> int:
    """Redrive all dead letters; return the number of letters that were put back."""
    arguments = ("dead-letters", "redrive", "--json", "--rate", REDRIVEN_A_SECOND)
    with started(*arguments, env=environment_of(product.kafka)) as process:

        def ended() -> bool:
            meanwhile()
            return process.poll() is not None

        eventually(ended, 120, "the redrive does not end")
        said, problems = process.communicate()
    assert process.returncode == 0, problems
    count: int = json.loads(said)["redriven"]
    return count


def test_a_week_without_a_receiver_loses_nothing_and_skips_nothing(
    product: Product, back_after_a_day: Callbacks, show: Callable[[str], None]
) -> None:
    away, env = product.callbacks, environment_of(product.kafka)
    for callbacks in (away, back_after_a_day):
        callbacks.up()
        callbacks.down()  # from here on the ports are reserved, and refuse connections
    product.worker("w1")
    delivery = Killed(product)
    missed, delayed = [f"missed-{n}" for n in range(2)], [f"delayed-{n}" for n in range(12)]
    later = [f"missed-{n}" for n in range(2, 24)]
    submit(product, back_after_a_day, delayed)
    submit(product, away, missed)

    def is_met(error: str) -> bool:
        """True if an attempt at the endpoint that comes back after a day ended with this error."""
        delivery.now_and_then("away")
        return any(one["error"] == error and one["job_id"] in delayed for one in product.attempts())

    eventually(lambda: is_met("connect_failed"), 60, "nobody found the port closed")
    back_after_a_day.hang()
    eventually(lambda: is_met("timeout"), 60, "nobody waited for an answer")
    back_after_a_day.up(PATIENCE)
    eventually(lambda: is_met("server_error"), 60, "no server asked for a pause")
    back_after_a_day.down()
    back_after_a_day.up()

    def all_attempts_are_made() -> bool:
        delivery.now_and_then("away")
        kept = set(reasons(product))  # on a slow machine, some of `delayed` become dead letters too
        return set(missed) <= kept and set(delayed) <= kept | taken(back_after_a_day)

    eventually(all_attempts_are_made, 120, "an event is neither delivered nor a dead letter")
    assert set(reasons(product).values()) == {"callback_exhausted"}
    missed += later
    submit(product, away, later)
    eventually(lambda: len(deferrals(product).keys() & set(later)) >= 15, 60, "few are deferred")
    delivery.settings |= DISABLED_SOON
    delivery.one()
    delivery.one()

    def disabled() -> bool:
        """Submit one more event; True if the endpoint is disabled."""
        missed.append(f"missed-{len(missed)}")
        submit(product, away, missed[-1:])
        time.sleep(0.5)
        return "endpoint_disabled" in reasons(product).values()

    eventually(disabled, 90, "the endpoint is not disabled")
    eventually(
        lambda: set(missed) <= set(reasons(product)), 60, lambda: f"{set(missed) - set(reasons(product))} are lost"
    )
    kept, deferred = reasons(product), deferrals(product)
    assert set(kept.values()) - {UNANSWERED} == {"callback_exhausted", "endpoint_disabled"}
    before = attempts(product)
    assert set(before.values()) == {1}, "an attempt is recorded twice"
    for name, why in kept.items():
        numbers = sorted(attempt for job, attempt in before if job == name)
        assert numbers == list(range(1, len(numbers) + 1)), "an attempt was skipped"
        assert why != "callback_exhausted" or len(numbers) == len(TIERS) + 1

    away.up()
    assert postback_here("endpoints", "enable", away.url, env=env).returncode == 0
    # A killed process may leave a transaction open, which hides later records such as the operator's order for seconds.
    eventually(lambda: "enabled" in postback_here("endpoints", "list", env=env).stdout, 30, "nobody sees it enabled")

    def kill() -> None:
        delivery.now_and_then("redrive")

    assert redrive(product, kill) == len(kept)
    product.wait_for_callbacks(len(missed), 60)
    eventually(lambda: taken(back_after_a_day) == set(delayed), 30, "some that were late are lost")
    assert redrive(product) == 0
    product.wait_until_nothing_is_left()

    for callbacks, names in ((away, missed), (back_after_a_day, delayed)):
        assert taken(callbacks) == set(names)
        for repeats in callbacks.events.values():
            assert len({(one.webhook_id, one.body) for one in repeats}) == 1
    assert len(product.outcomes()) == len(missed + delayed)
    assert len(product.dead_letters()) == len(kept)
    assert min(delivery.kills["away"], delivery.kills["redrive"]) > 0, f"there were {delivery.kills}"
    show(
        f"{len(set(delayed) - set(kept))} events delivered from the tiers, by redrive {dict(Counter(kept.values()))}; "
        f"before it {len(before)} attempts and {sum(deferred.values())} deferrals of {len(deferred)} events; "
        f"kills {dict(delivery.kills)}"
    )
