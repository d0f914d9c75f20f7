"""Tenants that share one real worker: a flood yields, and the bulk lane moves on beside other jobs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from confluent_kafka import Message

from telemetry.clock import SystemClock
from tests.fleet_here import FleetHere
from tests.messages import value_of
from tests.product import Fleet, Product, Role, eventually

pytestmark = pytest.mark.broker

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SLOW = {
    "POSTBACK_WORKER__WINDOW_RECORDS": "64",
    "POSTBACK_ENGINE__ECHO__LATENCY_SECONDS": "0.15",
}
"""With these settings, a worker answers at most 430 jobs a second, so a burst waits for seconds."""
SMALL = SLOW | {"POSTBACK_WORKER__WINDOW_BYTES": "1700000"}
"""With these settings, about 500 jobs fit into the queue."""


def jobs(name: str, count: int, **more: object) -> list[bytes]:
    job = {"prompt": "What is it?", **more}
    return [json.dumps({"job_id": f"{name}-{number}", **job}).encode() for number in range(count)]


def of(tenant: str, *more: tuple[str, bytes]) -> list[tuple[str, bytes]]:
    return [("tenant", tenant.encode()), *more]


def in_order(fleet: Fleet[Role]) -> list[str]:
    """The results' job ids in the order of settling."""
    results = fleet.read(fleet.kafka.topics.results)
    # The results of one transaction lie in several partitions. Within a partition, offsets give the order.
    results.sort(key=lambda message: (message.timestamp()[1], message.partition(), message.offset()))
    return [json.loads(value_of(message))["job_id"] for message in results]


def places(order: list[str], name: str) -> list[int]:
    return [place for place, job_id in enumerate(order) if job_id.startswith(f"{name}-")]


def assert_each_once(order: list[str], **sent: int) -> None:
    assert sorted(order) == sorted(f"{name}-{number}" for name, count in sent.items() for number in range(count))


def headers_of(messages: Iterable[Message]) -> list[dict[str, Any]]:
    return [dict(message.headers() or ()) for message in messages]


def test_one_tenants_flood_gives_way_to_the_few_jobs_of_another_tenant_and_is_answered_too(
    fleet_here: FleetHere,
) -> None:
    deadline = str(int(1000 * (SystemClock().time() + 3600))).encode()
    fleet_here.put(jobs("flood", 5000), of("acme", ("traceparent", TRACE.encode()), ("deadline", deadline)))
    fleet_here.put(jobs("few", 20), of("globex"))
    worker = fleet_here.worker("w1", **SMALL)
    fleet_here.wait_for_results(5000 + 20, 90)
    fleet_here.wait_until_nothing_is_left()

    order = in_order(fleet_here)
    assert_each_once(order, flood=5000, few=20)
    ahead = max(places(order, "few")) - 20
    assert ahead < 2500, f"{ahead} of the flood were answered first"
    deferred = fleet_here.read(fleet_here.kafka.topics.requests(bulk=True))
    assert worker.metrics()["postback_deferred_total"] == len(deferred) > 1000
    stamps = headers_of(deferred)
    assert {headers["tenant"] for headers in stamps} == {b"acme"}
    assert {(headers["deferred"], headers["traceparent"], headers["deadline"]) for headers in stamps} == {
        (b"1", TRACE.encode(), deadline)
    }
    results = headers_of(fleet_here.read(fleet_here.kafka.topics.results))
    ids = {headers["job-id"]: headers["webhook-id"] for headers in results}
    assert len(set(ids.values())) == len(ids)
    assert {headers["job-id"]: headers["webhook-id"] for headers in stamps}.items() <= ids.items()


def test_a_tenants_flood_alone_is_deferred_so_that_a_later_tenant_is_answered_long_before_its_end(
    fleet_here: FleetHere,
) -> None:
    fleet_here.put(jobs("flood", 2500), of("acme"))
    worker = fleet_here.worker("w1", **{**SMALL, "POSTBACK_ENGINE__ECHO__LATENCY_SECONDS": "0.4"})
    eventually(lambda: worker.metrics()["postback_deferred_total"] > 1000, 60, "nothing is deferred")
    fleet_here.put(jobs("few", 10), of("globex"))
    fleet_here.wait_for_results(2500 + 10, 90)
    fleet_here.wait_until_nothing_is_left()

    order = in_order(fleet_here)
    assert_each_once(order, flood=2500, few=10)
    assert max(places(order, "few")) < max(places(order, "flood")) - 800


def test_a_tenant_of_weight_three_gets_three_quarters_of_the_answers_while_both_tenants_wait(
    fleet_here: FleetHere,
) -> None:
    # Both tenants fit into the queue, so nothing is deferred, and the weights alone decide.
    fleet_here.put(jobs("light", 240), of("acme"))
    fleet_here.put(jobs("heavy", 270), of("globex"))
    weights = {"POSTBACK_WORKER__TENANT_WEIGHTS": json.dumps({"globex": 3})}
    worker = fleet_here.worker("w1", **{**SLOW, "POSTBACK_ENGINE__ECHO__LATENCY_SECONDS": "3"}, **weights)
    fleet_here.wait_for_results(510, 180)

    order = in_order(fleet_here)
    assert_each_once(order, light=240, heavy=270)
    assert worker.metrics()["postback_deferred_total"] == 0
    # The first three windows of 64 jobs may be those of `light`, whose jobs came first and cost less than estimated.
    # Of the next two windows, the weights give `heavy` 96 answers; without weights, it would have 64.
    heavy = len([job_id for job_id in order[192:320] if job_id.startswith("heavy-")])
    assert heavy >= 80


@pytest.mark.parametrize(
    ("later", "sooner", "fields", "seconds"),
    [(192, 64, {"ttl_seconds": 3600}, "3"), (400, 20, {"priority": 9}, "1.5")],
    ids=["by deadline", "by priority"],
)
def test_the_urgent_jobs_of_one_tenant_are_answered_before_its_flood(
    fleet_here: FleetHere, later: int, sooner: int, fields: dict[str, int], seconds: str
) -> None:
    """In an earlier version, 20 jobs of priority 9 behind 400 of priority 0 were answered last."""
    fleet_here.put(jobs("usual", later), of("acme"))
    fleet_here.put(jobs("urgent", sooner, **fields), of("acme"))
    worker = fleet_here.worker("w1", **{**SLOW, "POSTBACK_ENGINE__ECHO__LATENCY_SECONDS": seconds})
    fleet_here.wait_for_results(later + sooner, 120)

    order = in_order(fleet_here)
    assert_each_once(order, usual=later, urgent=sooner)
    # One window of 64 jobs begins at once, and a second window may begin before every partition is read.
    assert max(places(order, "urgent")) < 192
    assert worker.metrics()["postback_deferred_total"] == 0


def test_the_bulk_lane_gets_its_share_beside_the_default_lane(fleet_here: FleetHere) -> None:
    fleet_here.put(jobs("bulk", 60), of("globex"), topic=fleet_here.kafka.topics.requests(bulk=True))
    fleet_here.put(jobs("flood", 1000), of("acme"))
    fleet_here.worker("w1", **SLOW)
    fleet_here.wait_for_results(60 + 1000, 60)
    fleet_here.wait_until_nothing_is_left()

    order = in_order(fleet_here)
    assert_each_once(order, bulk=60, flood=1000)
    assert max(places(order, "bulk")) < max(places(order, "flood")) - 100


def test_spare_jobs_run_last_and_run_alone_too(fleet_here: FleetHere) -> None:
    fleet_here.put(jobs("spare", 300), of("globex"), topic=fleet_here.kafka.topics.requests(spare=True))
    fleet_here.put(jobs("bulk", 200), of("acme"), topic=fleet_here.kafka.topics.requests(bulk=True))
    fleet_here.put(jobs("usual", 400), of("acme"))
    fleet_here.worker("w1", **SLOW)
    fleet_here.wait_for_results(900, 60)
    fleet_here.wait_until_nothing_is_left()

    order = in_order(fleet_here)
    assert_each_once(order, spare=300, bulk=200, usual=400)
    early = [place for place in places(order, "spare") if place < 450]
    assert len(early) <= 128, "only a window of them may begin before the other lanes are read"


def test_a_worker_that_is_killed_while_it_defers_leaves_each_job_with_one_result(product: Product) -> None:
    product.put(jobs("flood", 2000), of("acme"))
    product.put(jobs("few", 20), of("globex"))
    bulk = product.kafka.topics.requests(bulk=True)
    worker = product.worker("w1", **SMALL)
    eventually(lambda: len(product.read(bulk)) > 0, 60, "nothing is deferred")
    worker.kill()
    product.worker("w1", **{**SMALL, "POSTBACK_ENGINE__ECHO__LATENCY_SECONDS": "0"})
    product.wait_for_results(2000 + 20, 60)
    product.wait_until_nothing_is_left()
    assert_each_once(in_order(product), flood=2000, few=20)
    assert product.dead_letters() == []
