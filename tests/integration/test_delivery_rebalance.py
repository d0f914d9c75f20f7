"""Delivery's partitions move while an endpoint hangs: attempts at it are abandoned, so that all others go on."""

from __future__ import annotations

import json
import socket

import pytest

from tests.fleet_here import FleetHere
from tests.messages import put_results
from tests.product import PARTITIONS, Role, eventually

pytestmark = pytest.mark.broker


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
        url = f"http://127.0.0.1:{hung.getsockname()[1]}/hook"
        put_results(fleet_here.kafka, dict.fromkeys(names, url))
        first = fleet_here.deliver("d1", POSTBACK_DELIVERY__DEADLINE_SECONDS="25")
        eventually(lambda: first.metrics()["postback_in_flight"] == len(names), 60, "not all attempts are under way")
        second = fleet_here.deliver("d2", POSTBACK_DELIVERY__DEADLINE_SECONDS="25")
        # The rebalance has to happen before the attempts' deadline: an attempt that ended by itself is not abandoned.
        eventually(lambda: abandoned(first) > 0, 60, first.said)
        eventually(lambda: second.metrics()["postback_in_flight"] > 0, 60, "the next owner does not try the callbacks")

        fine = {f"ok-{number}": fleet_here.callbacks.url for number in range(4 * PARTITIONS)}
        put_results(fleet_here.kafka, fine)
        fleet_here.wait_for_callbacks(4 * PARTITIONS, 60)
