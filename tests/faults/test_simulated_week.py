"""A receiver is down for a week, which is less than half a minute here, and delivery processes are killed all the time.

One endpoint comes back after a day: what waits for it in the tiers is delivered. The other stays away until the first
events have had all of their attempts, and on until it is disabled: what it missed is in the dead letters, and is
delivered by a redrive. Nothing is lost and nothing skipped.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from postback_command import environment_of, postback_here
from product import PARTITIONS, Callbacks, Product, Role, eventually

from producers.topics import create_topics
from schemas.settings import KafkaSettings

log = logging.getLogger(__name__)

pytestmark = pytest.mark.broker

TIERS = (0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 2.0)
"""Nine waits, as in the schedule that fleets have."""
BREAKER = {
    "POSTBACK_DELIVERY__BREAKER_OPEN_SECONDS": "0.05",
    "POSTBACK_DELIVERY__BREAKER_LONGEST_SECONDS": "0.05",
}
DISABLED_SOON = {"POSTBACK_DELIVERY__DISABLE_AFTER_SECONDS": "2"}
"""What delivery is started with at the end of the week, and no sooner: the first events have their attempts before."""
KILL_EVERY_RECORDS = 40


class Killed:
    """Two delivery processes, of which one after the other is killed and started anew."""

    def __init__(self, product: Product) -> None:
        self._product = product
        self.settings = dict(BREAKER)
        self._names = itertools.cycle(("d1", "d2"))
        self._roles = {name: self._start(name) for name in ("d1", "d2")}
        self._done = 0
        self.kills = 0

    def now_and_then(self) -> None:
        """Whenever they have got some further."""
        done = len(attempts(self._product)) + len(self._product.dead_letters())
        if done >= self._done + KILL_EVERY_RECORDS:
            self._done = done
            self.one()

    def one(self) -> None:
        name = next(self._names)
        self._roles[name].kill()
        self._roles[name] = self._start(name)
        self.kills += 1

    def _start(self, name: str) -> Role:
        return self._product.deliver(name, **self.settings)


@pytest.fixture
def product(fleet: KafkaSettings, tmp_path: Path, clean_processes: None) -> Iterator[Product]:
    kafka = fleet.model_copy(update={"tier_delays_seconds": TIERS, "partitions": PARTITIONS})
    create_topics(kafka)
    started = Product(kafka, tmp_path)
    yield started
    started.end()


@pytest.fixture
def back_after_a_day(product: Product) -> Iterator[Callbacks]:
    callbacks = Callbacks(product.keyring)
    yield callbacks
    callbacks.end()


def submit(product: Product, callbacks: Callbacks, names: list[str]) -> None:
    product.submit({"job_id": name, "prompt": name, "callback_url": callbacks.url} for name in names)


def reasons(product: Product) -> dict[str, str]:
    """Of the dead letters, by job."""
    return {letter["job-id"]: letter["reason"] for letter in product.dead_letters()}


def attempts(product: Product) -> Counter[tuple[str, int]]:
    """How often each attempt of each job is recorded."""
    said = [json.loads(message.value()) for message in product.read(product.kafka.topics.attempts)]
    return Counter((one["job_id"], one["attempt"]) for one in said)


def redrive(product: Product) -> int:
    done = postback_here("dead-letters", "redrive", "--json", env=environment_of(product.kafka))
    count: int = json.loads(done.stdout)["redriven"]
    return count


def test_a_week_without_a_receiver_loses_nothing_and_skips_nothing(
    product: Product, back_after_a_day: Callbacks
) -> None:
    away, env = product.callbacks, environment_of(product.kafka)
    for callbacks in (away, back_after_a_day):
        callbacks.up()
        callbacks.down()  # the ports are known now, and nothing listens there
    product.worker("w1")
    delivery = Killed(product)
    missed, delayed = [f"missed-{n}" for n in range(20)], [f"delayed-{n}" for n in range(12)]
    submit(product, back_after_a_day, delayed)
    submit(product, away, missed)

    def each_was_tried() -> bool:
        tried = attempts(product)
        return all((name, 1) in tried for name in delayed)

    eventually(each_was_tried, 60, "not every callback was tried")
    back_after_a_day.up()
    delivery.one()

    def all_attempts_are_made() -> bool:
        delivery.now_and_then()
        kept = set(reasons(product))  # on a slow machine of those too that are back too late
        return set(missed) <= kept and set(delayed) <= kept | set(back_after_a_day.events)

    eventually(all_attempts_are_made, 120, "something is neither delivered nor a dead letter")
    assert set(reasons(product).values()) == {"callback_exhausted"}
    delivery.settings |= DISABLED_SOON
    delivery.one()
    delivery.one()

    def disabled() -> bool:
        """More events, until their endpoint is disabled."""
        more = [f"missed-{len(missed)}", f"missed-{len(missed) + 1}"]
        missed.extend(more)
        submit(product, away, more)
        time.sleep(0.3)
        return "endpoint_disabled" in reasons(product).values()

    eventually(disabled, 90, "the endpoint is not disabled")
    delivery.one()
    eventually(
        lambda: set(missed) <= set(reasons(product)), 60, lambda: f"{set(missed) - set(reasons(product))} are lost"
    )
    kept = reasons(product)
    assert set(kept.values()) == {"callback_exhausted", "endpoint_disabled"}
    before = attempts(product)
    assert set(before.values()) == {1}, "an attempt is recorded twice"
    for name, reason in kept.items():
        numbers = sorted(attempt for job, attempt in before if job == name)
        assert numbers == list(range(1, len(numbers) + 1)), "an attempt was skipped"
        assert reason == "endpoint_disabled" or len(numbers) == len(TIERS) + 1

    away.up()
    assert postback_here("endpoints", "enable", away.url, env=env).returncode == 0
    # A process that was killed holds up for some seconds what is committed behind it, an operator's word among it.
    eventually(lambda: "enabled" in postback_here("endpoints", "list", env=env).stdout, 30, "nobody sees it enabled")
    assert redrive(product) == len(kept)
    delivery.one()
    product.wait_for_callbacks(len(missed), 60)
    eventually(lambda: set(back_after_a_day.events) == set(delayed), 30, "some that were late are lost")
    assert redrive(product) == 0
    product.wait_until_nothing_is_left()

    for callbacks, names in ((away, missed), (back_after_a_day, delayed)):
        assert set(callbacks.events) == set(names)
        for repeats in callbacks.events.values():
            assert len({(one.webhook_id, one.body) for one in repeats}) == 1
    assert len(product.outcomes()) == len(missed + delayed)
    assert len(product.dead_letters()) == len(kept)
    assert delivery.kills >= 5
    log.info(
        "%d delivered from the tiers, and by redrive: %s", len(set(delayed) - set(kept)), dict(Counter(kept.values()))
    )
    log.info("%d times a delivery process was killed", delivery.kills)
