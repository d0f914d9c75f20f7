"""`postback deliveries ID` over a real delivery: all that became of a callback, put back included."""

from __future__ import annotations

import json
import re

import pytest
from confluent_kafka import Producer
from postback_command import environment_of, postback, postback_here
from product import PARTITIONS, Product, eventually

from producers.scan import Scanner
from producers.topics import create_topics
from schemas.codec import write_result
from schemas.result import Outcome, Result

pytestmark = pytest.mark.broker

FORMER_TIER_SECONDS = 0.4
"""Of a schedule that the fleet had before."""


def put_result(product: Product, topic: str, job_id: str, webhook_id: str) -> None:
    result = Result(job_id=job_id, outcome=Outcome.SUCCEEDED, text="Paris", created_at=1_700_000_000)
    headers = {"webhook-id": webhook_id, "job-id": job_id, "callback-url": product.callbacks.url}
    producer = Producer(product.kafka.client_config())
    producer.produce(topic, write_result(result), job_id, 0, headers=list(headers.items()))
    assert producer.flush(20) == 0


def test_a_callback_that_failed_and_was_put_back_is_told_from_its_result_to_its_delivery(product: Product) -> None:
    former = product.kafka.model_copy(update={"tier_delays_seconds": (FORMER_TIER_SECONDS,), "partitions": PARTITIONS})
    create_topics(former)
    product.callbacks.up()
    product.callbacks.down()
    env = environment_of(product.kafka)
    put_result(product, product.kafka.topics.results, "job_1", "msg_1")
    # Without jitter: with it, what is early by more than the slack hops, which is one step more.
    product.deliver("d1", POSTBACK_DELIVERY__JITTER="0")
    eventually(lambda: len(product.dead_letters()) == 1, 60, "the callback is not given up")
    product.callbacks.up()
    former_tier = former.topics.tier(FORMER_TIER_SECONDS)
    put_result(product, former_tier, "job_2", "msg_2")
    assert postback_here("dead-letters", "redrive", "job_1", env=env).returncode == 0
    product.wait_for_callbacks(2, 60)
    product.wait_until_nothing_is_left()
    eventually(lambda: product.lag("delivery", [former_tier]) == 0, 30, "what waited in the former tier is not settled")
    with Scanner(product.kafka) as scanner:
        scanner.wait_until_settled([product.kafka.topics.attempts])

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
    # What a redrive writes, it writes in one transaction.
    assert {what for what, *_ in told[7:9]} == {"redriven", "waiting"}
    assert told[9:] == [("attempt", 1, None)]
    lines = postback_here("deliveries", "job_1", env=env).stdout.splitlines()
    assert len(lines) == len(steps)
    origin = product.callbacks.url.removesuffix("/hook?token=secret")
    assert re.fullmatch(rf"\S+Z  settled: succeeded, to be called back at {origin} \(model_results 0:0\)", lines[0])
    assert re.fullmatch(r"\S+Z  attempt 1 delivered: status 200, [\d.]+ ms, \d+ bytes", lines[-1])
    assert "secret" not in "".join(lines)
    assert postback_here("deliveries", "job_2", env=env).stdout.count("attempt 1 delivered") == 1


def test_a_callback_that_waits_in_a_tier_of_an_earlier_schedule_is_told_too(product: Product) -> None:
    former = product.kafka.model_copy(update={"tier_delays_seconds": (FORMER_TIER_SECONDS,), "partitions": PARTITIONS})
    create_topics(former)
    tier = former.topics.tier(FORMER_TIER_SECONDS)
    put_result(product, tier, "job_3", "msg_3")

    done = postback_here("deliveries", "msg_3", "--json", env=environment_of(product.kafka))
    assert [(step["what"], step["topic"]) for step in json.loads(done.stdout)] == [("waiting", tier)]


def test_of_a_job_that_is_not_known_that_is_said(product: Product) -> None:
    done = postback("deliveries", "nobody", "--since", "-1h", "--json", env=environment_of(product.kafka))

    assert (done.returncode, done.stdout, done.stderr) == (1, "[]\n", "postback: nothing is kept of nobody\n")
