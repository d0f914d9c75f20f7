"""Delivery's partitions move while an endpoint hangs: attempts at it are abandoned, so that all others go on."""

from __future__ import annotations

import json
import socket

import pytest
from confluent_kafka import Producer

from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from tests.fleet_here import FleetHere
from tests.product import PARTITIONS, Role, eventually

pytestmark = pytest.mark.broker


def put_results(fleet_here: FleetHere, url: str, names: list[str]) -> None:
    """Write one result for each name, in turn over the partitions."""
    producer = Producer(fleet_here.kafka.client_config())
    for count, name in enumerate(names):
        result = Result(job_id=name, outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000)
        headers = {"webhook-id": name, "job-id": name, "callback-url": url}
        topic, partition = fleet_here.kafka.topics.results, count % PARTITIONS
        producer.produce(topic, write_result(result), name, partition, headers=list(headers.items()))
    assert producer.flush(20) == 0


def abandoned(role: Role) -> int:
    """The number of records that the process abandoned when its partitions were revoked."""
    lines = [json.loads(line) for line in role.said().splitlines() if line.startswith("{")]
    return sum(line["postback.abandoned"] for line in lines if line.get("event.action") == "partitions-revoked")


def test_partitions_with_attempts_that_hang_go_to_another_process_before_the_attempts_deadline(
    fleet_here: FleetHere,
) -> None:
    fleet_here.callbacks.up()
    with socket.socket() as hung:  # the kernel accepts connections, and no code answers
        hung.bind(("127.0.0.1", 0))
        hung.listen(100)
        names = [f"hung-{number}" for number in range(4 * PARTITIONS)]
        put_results(fleet_here, f"http://127.0.0.1:{hung.getsockname()[1]}/hook", names)
        first = fleet_here.deliver("d1", POSTBACK_DELIVERY__DEADLINE_SECONDS="25")
        eventually(lambda: first.metrics()["postback_in_flight"] == len(names), 60, "not all attempts are under way")
        second = fleet_here.deliver("d2", POSTBACK_DELIVERY__DEADLINE_SECONDS="25")
        # The rebalance has to happen before the attempts' deadline: an attempt that ended by itself is not abandoned.
        eventually(lambda: abandoned(first) > 0, 60, first.said)
        eventually(lambda: second.metrics()["postback_in_flight"] > 0, 60, "the next owner does not try the callbacks")

        put_results(fleet_here, fleet_here.callbacks.url, [f"ok-{number}" for number in range(4 * PARTITIONS)])
        fleet_here.wait_for_callbacks(4 * PARTITIONS, 60)
