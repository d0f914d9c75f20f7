"""A receiver asks for a wait of ten seconds, and delivery processes die and join: none calls it sooner."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from cli.devkit.receiver import Behaviour
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from tests.product import PARTITIONS, Product, eventually

pytestmark = pytest.mark.broker

TIERS = (1.0, 4.0, 14.0)
"""The receiver's ten seconds lie between two tiers, so a record changes its tier while it waits."""
ASKED_SECONDS = 10
"""Long enough for the test to kill a process before the second attempts. A later kill would repeat some attempts."""
EVENTS = 40
ASKING = Behaviour(status=204, fail_first=1, fail_status=429, retry_after_seconds=ASKED_SECONDS)


@pytest.fixture
def patient(product_with_tiers: Callable[..., Product]) -> Product:
    return product_with_tiers(*TIERS)


def put_results(product: Product, names: list[str]) -> None:
    """Write each result for its own tenant: an origin's Retry-After also delays the tenant's other events there."""
    producer = Producer(product.kafka.client_config())
    for count, name in enumerate(names):
        result = Result(job_id=name, outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000)
        headers = {"webhook-id": f"msg_{name}", "job-id": name, "tenant": name}
        headers |= {"callback-url": product.callbacks.url}
        topic, partition = product.kafka.topics.results, count % PARTITIONS
        producer.produce(topic, write_result(result), name, partition, headers=list(headers.items()))
    assert producer.flush(20) == 0


def test_a_retry_after_is_met_in_full_by_any_process_that_makes_the_next_attempt(patient: Product) -> None:
    patient.callbacks.up(ASKING)
    doomed, other = (patient.deliver(name) for name in ("d1", "d2"))
    eventually(lambda: doomed.ready()[0] and other.ready()[0], 60, "delivery is not ready")
    names = [f"event-{number}" for number in range(EVENTS)]
    patient.callbacks.tenants = names
    put_results(patient, names)
    eventually(lambda: len(patient.attempts()) >= EVENTS, 60, lambda: f"{len(patient.attempts())} attempts are made")
    doomed.kill()
    patient.deliver("d3")
    eventually(
        lambda: len(patient.attempts()) >= 2 * EVENTS, 90, lambda: f"{len(patient.attempts())} attempts are made"
    )
    patient.wait_until_nothing_is_left()

    said = sorted(patient.attempts(), key=lambda one: (one["job_id"], one["attempt"]))
    assert [(one["job_id"], one["attempt"], one["status"]) for one in said] == [
        (name, *each) for name in sorted(names) for each in ((1, 429), (2, 204))
    ]
    for first, second in zip(said[::2], said[1::2], strict=True):
        answered = first["at"] + first["duration_ms"]
        # Both times are rounded, so their difference may be up to 2 ms too small.
        assert second["at"] - answered >= 1000 * ASKED_SECONDS - 2
    assert {name: [one.status for one in got] for name, got in patient.callbacks.events.items()} == {
        name: [429, 204] for name in names
    }
    assert patient.dead_letters() == []
