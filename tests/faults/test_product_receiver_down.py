"""The receiver is down: callbacks wait in the tiers, and are given up only at the schedule's end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.operations.topics import create_topics
from schemas.settings import KafkaSettings
from tests.fleet_here import FleetHere, running_here
from tests.product import PARTITIONS, eventually

pytestmark = pytest.mark.broker

NOBODY = "http://127.0.0.1:9/hook"
"""The discard port, on which nothing listens."""
TIERS = (0.3, 15.0)
"""The second wait is long enough for the test to notice the first failures and start the receiver."""


@pytest.fixture
def patient(fleet: KafkaSettings, tmp_path: Path) -> Iterator[FleetHere]:
    kafka = fleet.model_copy(update={"tier_delays_seconds": TIERS, "partitions": PARTITIONS})
    create_topics(kafka)
    with running_here(kafka, tmp_path) as started:
        yield started


def test_a_returning_receiver_gets_missed_events_and_untaken_ones_are_dead_letters(
    patient: FleetHere,
) -> None:
    patient.callbacks.up()
    patient.callbacks.down()  # from here on the port is reserved, and refuses connections
    worker = patient.worker("w1", "--engine", "echo", "--with-delivery")
    missed, lost = [f"missed-{n}" for n in range(12)], [f"lost-{n}" for n in range(4)]
    patient.submit({"job_id": name, "prompt": name, "callback_url": patient.callbacks.url} for name in missed)
    patient.submit({"job_id": name, "prompt": name, "callback_url": NOBODY} for name in lost)

    def attempts() -> list[tuple[str, int, str | None]]:
        return [(one["job_id"], one["attempt"], one["error"]) for one in patient.attempts()]

    # Ask the process itself, because on a busy machine reading the attempts' topic may outlast a callback's second
    # wait.
    failed = "postback_callbacks_total{connect_failed}"
    eventually(lambda: worker.metrics().get(failed, 0) >= len(missed + lost), 60, "not every callback was tried")
    patient.callbacks.up()
    patient.wait_for_callbacks(len(missed), 30)
    eventually(lambda: len(patient.dead_letters()) >= len(lost), 30, "a lost callback is no dead letter")
    patient.wait_until_nothing_is_left()

    assert set(patient.callbacks.events) == set(missed)
    letters = patient.dead_letters()
    assert {letter["job-id"] for letter in letters} == set(lost)
    assert {(letter["reason"], letter["attempts"]) for letter in letters} == {("callback_exhausted", "3")}
    tried = sorted(attempts(), key=lambda one: one[1])  # a batch spreads its records over several partitions
    assert {attempt for job, attempt, _ in tried if job in lost} == {1, 2, 3}
    for name in missed:
        errors = [error for job, _, error in tried if job == name]
        assert errors[0] is not None
        assert errors.count(None) == 1
    webhook_ids = {name: {one.webhook_id for one in patient.callbacks.events[name]} for name in missed}
    assert all(len(ids) == 1 for ids in webhook_ids.values())
