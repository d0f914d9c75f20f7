"""`postback deliveries ID` after a real delivery: a callback's whole history, including a redrive."""

from __future__ import annotations

import json
import re
from time import time
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from cli.operations.topics import create_topics
from producers.scan import Scanner
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from tests.fleet_here import FleetHere
from tests.postback_command import environment_of, postback_here
from tests.product import PARTITIONS, eventually

pytestmark = pytest.mark.broker

FORMER_TIER_SECONDS = 0.4
"""A tier that belongs to the fleet's former schedule."""
ATTEMPTS = 3
"""Attempts for an event of the test's fleet, which has two tiers."""


def put_result(fleet_here: FleetHere, topic: str, job_id: str, webhook_id: str) -> None:
    result = Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000)
    headers = {"webhook-id": webhook_id, "job-id": job_id, "callback-url": fleet_here.callbacks.url}
    producer = Producer(fleet_here.kafka.client_config())
    producer.produce(topic, write_result(result), job_id, 0, headers=list(headers.items()))
    assert producer.flush(20) == 0


def test_a_failed_and_redriven_callback_is_shown_from_its_result_to_its_delivery(fleet_here: FleetHere) -> None:
    former = fleet_here.kafka.model_copy(
        update={"tier_delays_seconds": (FORMER_TIER_SECONDS,), "partitions": PARTITIONS}
    )
    create_topics(former)
    fleet_here.callbacks.up()
    fleet_here.callbacks.down()
    env = environment_of(fleet_here.kafka)
    put_result(fleet_here, fleet_here.kafka.topics.results, "job_1", "msg_1")
    # Jitter is off, because a record that is early by more than the slack would hop to another tier, and so add a step.
    fleet_here.deliver("d1", POSTBACK_DELIVERY__JITTER="0")
    eventually(lambda: len(fleet_here.dead_letters()) == 1, 60, "the callback is not given up")
    fleet_here.callbacks.up()
    former_tier = former.topics.tier(FORMER_TIER_SECONDS)
    put_result(fleet_here, former_tier, "job_2", "msg_2")
    assert postback_here("dead-letters", "redrive", "job_1", env=env).returncode == 0
    fleet_here.wait_for_callbacks(2, 60)
    fleet_here.wait_until_nothing_is_left()
    eventually(
        lambda: not fleet_here.lag("delivery", [former_tier]), 30, "the callback of the former tier is not settled"
    )
    with Scanner(fleet_here.kafka) as scanner:
        scanner.wait_until_settled([fleet_here.kafka.topics.attempts])

    steps = json.loads(postback_here("deliveries", "msg_1", "--json", env=env).stdout)
    assert {(step["tenant"], step["job_id"]) for step in steps} == {("default", "job_1")}
    assert [step["at"] for step in steps] == sorted(step["at"] for step in steps)
    told = [(step["what"], step.get("attempt") or step.get("attempts"), step.get("error")) for step in steps]
    failed = "connect_failed"
    assert sorted(told[:7], key=str) == sorted(
        [
            *(("settled", None, None), ("attempt", 1, failed), ("waiting", "1", None), ("attempt", 2, failed)),
            *(("waiting", "2", None), ("attempt", 3, failed), ("dead_letter", None, None)),
        ],
        key=str,
    )
    # A redrive writes the mark and the callback in one transaction, so either may come first.
    assert {what for what, *_ in told[7:9]} == {"redriven", "waiting"}
    assert told[9:] == [("attempt", 1, None)]
    lines = postback_here("deliveries", "job_1", env=env).stdout.splitlines()
    assert len(lines) == len(steps)
    origin = fleet_here.callbacks.url.removesuffix("/hook?token=secret")
    assert re.fullmatch(rf"\S+Z  settled: succeeded, to be called back at {origin} \(model_results 0:0\)", lines[0])
    assert re.fullmatch(rf"\S+Z  attempt 1 of {ATTEMPTS} delivered: status 200, [\d.]+ ms, \d+ bytes", lines[-1])
    assert lines[1].partition("attempt ")[2].startswith(f"1 of {ATTEMPTS} failed: ")
    assert "secret" not in "".join(lines)
    assert postback_here("deliveries", "job_2", env=env).stdout.count(f"attempt 1 of {ATTEMPTS} delivered") == 1


def put(fleet: KafkaSettings, topic: str, headers: dict[str, str], value: bytes = b"{}", at_ms: int = 0) -> None:
    producer = Producer(fleet.client_config())
    said = {"job-id": "job_1", "webhook-id": "msg_1", **headers}
    producer.produce(topic, value, "job_1", 0, headers=list(said.items()), timestamp=at_ms)
    assert producer.flush(20) == 0


def told(fleet: KafkaSettings, *arguments: str) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = json.loads(
        postback_here("deliveries", "msg_1", "--json", *arguments, env=environment_of(fleet)).stdout
    )
    return steps


def test_hundreds_of_deferrals_of_an_event_are_shown_as_one_line_for_each_wait(fleet: KafkaSettings) -> None:
    fleet = stamped_by_us(fleet)
    former = fleet.model_copy(update={"tier_delays_seconds": (FORMER_TIER_SECONDS,)})
    create_topics(former)
    tier, former_tier = fleet.topics.tier(0.3), former.topics.tier(FORMER_TIER_SECONDS)
    start_ms = int(time() * 1000) - 3_600_000
    put(fleet, fleet.topics.results, {"callback-url": "https://hooks.example/in"}, at_ms=start_ms)
    for number in range(1, 300):
        put(fleet, tier, {"deferred": str(number)}, at_ms=start_ms + number)
    # The broker stamps records of the former tier with the current time, so this wait is the last before the attempt.
    reason = {"deferred-reason": "origin_left_alone"}
    put(fleet, former_tier, {"deferred": "300", "not-before": "1700000000000", **reason})
    after_ms = int(time() * 1000) + 1000
    tried = {"tenant": "default", "job_id": "job_1", "webhook_id": "msg_1", "attempt": 1, "at": after_ms}
    put(fleet, fleet.topics.attempts, {}, json.dumps(tried).encode())
    put(fleet, tier, {"attempt": "1", "deferred": "300"}, at_ms=after_ms + 1)
    put(fleet, tier, {"attempt": "1", "deferred": "302"}, at_ms=after_ms + 2)
    put(fleet, fleet.topics.redriven, {}, at_ms=after_ms + 3)
    for number in range(2):
        put(fleet, tier, {"deferred": str(number)}, at_ms=after_ms + 4 + number)

    steps = told(fleet)
    assert [(step["what"], step.get("deferred")) for step in steps] == [
        ("settled", None),
        *(("waiting", 300), ("attempt", None), ("waiting", 2), ("redriven", None), ("waiting", 1)),
    ]
    first = steps[1]
    assert (first["topic"], first["until"]) == (former_tier, "2023-11-14T22:13:20.000Z")
    assert first["at"] < first["last"]
    lines = postback_here("deliveries", "job_1", env=environment_of(fleet)).stdout.splitlines()
    assert len(lines) == len(steps)
    assert lines[1] == (
        f"{first['at']}  waits until 2023-11-14T22:13:20.000Z ({former_tier}), deferred 300 times until {first['last']}"
        ": the endpoint's origin failed too often, or asked for a pause"
    )


def test_attempts_and_waits_are_not_looked_for_before_the_first_result_unless_something_was_given_up_before(
    fleet: KafkaSettings,
) -> None:
    now_ms, day_ms = int(time() * 1000), 24 * 3600 * 1000
    fleet = stamped_by_us(fleet)
    for days, number in ((3, 1), (1, 2)):
        tried = {"tenant": "default", "job_id": "job_1", "webhook_id": "msg_1", "attempt": number}
        at_ms = now_ms - days * day_ms
        put(fleet, fleet.topics.attempts, {}, json.dumps({**tried, "at": at_ms}).encode(), at_ms)
    put(fleet, fleet.topics.results, {}, at_ms=now_ms - 2 * day_ms)

    assert [(step["what"], step.get("attempt")) for step in told(fleet)] == [("settled", None), ("attempt", 2)]
    assert [step["what"] for step in told(fleet, "--since", "-36h")] == ["attempt"]

    put(fleet, fleet.topics.dead_letters, {"reason": "worker_killed"}, at_ms=now_ms - 4 * day_ms)
    assert [step["what"] for step in told(fleet)] == ["dead_letter", "attempt", "settled", "attempt"]


def stamped_by_us(fleet: KafkaSettings) -> KafkaSettings:
    """A fleet whose topics keep their records' own timestamps, for events of days ago."""
    ours = fleet.model_copy(update={"topic_prefix": f"{fleet.topic_prefix}ours.", "partitions": 1})
    admin = AdminClient(ours.client_config())
    specs = [(spec, {**spec.config, "message.timestamp.type": "CreateTime"}) for spec in ours.topics.specs(1)]
    made = admin.create_topics([NewTopic(spec.name, spec.partitions, 1, config=config) for spec, config in specs])
    for done in made.values():
        done.result(20)
    return ours


def test_an_unknown_job_is_reported_as_unknown(fleet_here: FleetHere) -> None:
    done = postback_here("deliveries", "nobody", "--since", "-1h", "--json", env=environment_of(fleet_here.kafka))

    said = "postback: nobody was never seen: no lane and no kept result has it\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "[]\n", said)
