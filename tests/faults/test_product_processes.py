"""Workers and delivery are killed, stopped and started under load: nothing is lost, nothing is answered twice."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest

from cli.devkit.receiver import Received
from tests.product import PARTITIONS, Product, Role, eventually

pytestmark = pytest.mark.broker

JOBS = 900
NARROW = {"POSTBACK_WORKER__WINDOW_RECORDS": "8"}
"""Eight jobs of 0.2 s at once make 40 a second for each worker, so the load outlasts the test's faults."""


def jobs_named(names: list[str], product: Product) -> list[dict[str, object]]:
    url = product.callbacks.url
    return [{"job_id": name, "prompt": f"[[sleep 0.2]] {name}", "callback_url": url} for name in names]


def test_processes_that_die_leave_and_come_back_answer_every_job_once_and_call_back(product: Product) -> None:
    product.callbacks.up()
    workers = {name: product.worker(name, **NARROW) for name in ("w1", "w2")}
    deliveries = {name: product.deliver(name) for name in ("d1", "d2")}
    names = [f"job-{number}" for number in range(JOBS)]
    product.submit(jobs_named(names, product))

    product.wait_for_callbacks(50, 60)
    workers["w1"].kill()
    deliveries["d1"].kill()
    workers["w1"], deliveries["d1"] = product.worker("w1", **NARROW), product.deliver("d1")
    product.wait_for_callbacks(JOBS // 3, 60)
    assert workers["w2"].terminate() == 0
    workers["w3"] = product.worker("w3", **NARROW)
    assert deliveries["d2"].terminate() == 0
    deliveries["d2"] = product.deliver("d2")
    product.wait_for_callbacks(JOBS * 2 // 3, 60)
    workers["w1"].kill()
    deliveries["d1"].kill()

    product.wait_for_callbacks(JOBS, 90)
    product.wait_until_nothing_is_left()
    product.assert_each_is_answered_once_and_called_back(names)
    assert set(product.outcomes().values()) == {"succeeded"}
    assert product.dead_letters() == []
    for role in (workers["w3"], deliveries["d2"]):
        assert role.terminate() == 0


def test_a_delivery_process_that_dies_between_the_post_and_its_settling_repeats_the_same_event(
    product: Product,
) -> None:
    product.callbacks.up()
    product.worker("w1")
    doomed = product.deliver("d1")

    def kill_the_first_sender(received: Received) -> None:
        if len(product.callbacks.received) == 1:
            os.kill(doomed.process.pid, signal.SIGKILL)

    product.callbacks.before_answer = kill_the_first_sender
    names = [f"job-{number}" for number in range(20)]
    product.submit({"job_id": name, "prompt": name, "callback_url": product.callbacks.url} for name in names)
    assert doomed.process.wait(90) == -signal.SIGKILL

    heir = product.deliver("d1")
    product.wait_for_callbacks(len(names), 60)
    product.wait_until_nothing_is_left()
    product.assert_each_is_answered_once_and_called_back(names)
    # The log line `partition-left-open` says that the heir tries the first records of partitions in small groups.
    assert '"partition-left-open"' in heir.said()
    assert "partition-left-open" not in doomed.said()
    assert max(len(repeats) for repeats in product.callbacks.events.values()) >= 2


def test_every_worker_has_its_share_of_every_lane(product: Product) -> None:
    """If each worker served one lane only, an engine would be idle whenever its lane is empty."""

    def lanes_of(worker: Role) -> Counter[str]:
        held = [name for name in worker.metrics() if name.startswith("postback_backlog_records")]
        return Counter(name.partition(",")[2].rstrip("}") for name in held)

    topics = product.kafka.topics
    share = dict.fromkeys(topics.requests_of(None), PARTITIONS // 2)
    workers = [product.worker(name) for name in ("w1", "w2")]
    eventually(
        lambda: all(lanes_of(worker) == share for worker in workers), 60, lambda: str([lanes_of(w) for w in workers])
    )
