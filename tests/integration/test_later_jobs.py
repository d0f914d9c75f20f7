"""Jobs that start later, on a real broker: each is answered once and in time, whichever process dies meanwhile."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cli.operations.unanswered import look_into_lanes
from producers.scan import Scanner
from producers.times import show_time
from tests.postback_command import environment_of, postback_here
from tests.product import Product, eventually
from workers.stage.progress import done_offsets

pytestmark = pytest.mark.broker

JOBS = 12
LATER_SECONDS = 20.0


def test_jobs_that_wait_are_answered_once_and_never_early_though_each_process_is_killed(product: Product) -> None:
    product.callbacks.up()
    first, delivery = product.worker("w1"), product.deliver("d1")
    eventually(lambda: first.ready()[0] and delivery.ready()[0], 60, "the roles are not ready")
    begins = time.time() + LATER_SECONDS
    url = {"callback_url": product.callbacks.url}
    waiting: list[dict[str, Any]] = [
        {"job_id": f"later-{number}", "prompt": "x", "not_before": begins, **url} for number in range(JOBS)
    ]
    product.submit(waiting)
    product.submit({"job_id": f"now-{number}", "prompt": "x", **url} for number in range(JOBS))
    product.wait_for_results(JOBS, 10)  # jobs of the same partitions are answered meanwhile
    assert {name.partition("-")[0] for name in product.outcomes()} == {"now"}
    with Scanner(product.kafka) as scanner:
        look = look_into_lanes(product.kafka, scanner, done_offsets, {job["job_id"] for job in waiting})
    assert look.starts_ms == {job["job_id"]: round(1000 * begins) for job in waiting}
    shown = postback_here("endpoints", "deliveries", "later-0", env=environment_of(product.kafka))
    assert f"later-0 is scheduled for {show_time(round(1000 * begins))}, and has not started" in shown.stderr

    first.kill()
    delivery.kill()
    product.worker("w1")
    product.deliver("d1")
    product.wait_for_callbacks(2 * JOBS, 60)
    product.wait_until_nothing_is_left()

    assert product.outcomes() == {
        **{job["job_id"]: "succeeded" for job in waiting},
        **{f"now-{number}": "succeeded" for number in range(JOBS)},
    }
    stamps = [message.timestamp()[1] for message in product.read(product.kafka.topics.results)]
    assert sum(1 for stamp in stamps if stamp >= 1000 * begins) == JOBS
    assert len({event.headers["webhook-id"] for one in product.callbacks.events.values() for event in one}) == 2 * JOBS
