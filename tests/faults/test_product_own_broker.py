"""A fleet with its own broker: a plain kafka-python producer, and readiness and logs while the broker is down."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaProducer

from cli.devkit.broker import Broker
from cli.operations.topics import create_topics
from schemas.settings import KafkaSettings
from tests.product import PARTITIONS, Product, eventually, running

pytestmark = pytest.mark.broker


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    with Broker.start() as broker:
        yield broker


@pytest.fixture
def unprefixed(own_broker: Broker, tmp_path: Path, clean_processes: None) -> Iterator[Product]:
    """A fleet with the default topic names."""
    kafka = KafkaSettings(bootstrap_servers=own_broker.bootstrap_servers, partitions=PARTITIONS)
    create_topics(kafka)
    with running(kafka, tmp_path) as started:
        yield started


@pytest.fixture
def producer(own_broker: Broker) -> Iterator[KafkaProducer]:
    """A producer that knows nothing of Postback, closed after a failure too: its sockets would fail later tests."""
    broker = own_broker.bootstrap_servers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # kafka-python 3 deprecates functions as serializers
        plain = KafkaProducer(bootstrap_servers=broker, value_serializer=lambda job: json.dumps(job).encode())
    yield plain
    plain.close(timeout=5)


def test_a_plain_producer_gets_a_signed_callback_and_a_frozen_broker_is_reported_and_survived(
    unprefixed: Product, own_broker: Broker, producer: KafkaProducer
) -> None:
    unprefixed.callbacks.up()
    worker, delivery = unprefixed.worker("w1"), unprefixed.deliver("d1")
    url = unprefixed.callbacks.url

    producer.send("model_requests", {"prompt": "What is the capital of France?", "callback_url": url})
    producer.flush()

    unprefixed.wait_for_callbacks(1, 60)
    [received] = unprefixed.callbacks.received
    assert received.verified
    assert received.event["type"] == "inference.succeeded"
    assert received.event["data"]["text"] == "What is the capital of France?"
    assert received.event["id"] == received.webhook_id
    eventually(lambda: worker.ready() == delivery.ready() == (True, []), 60, "a process is not ready")

    for number in range(40):
        producer.send(
            # Each job takes 10 s, so that the test sees jobs in flight. The broker is frozen for about as long.
            "model_requests",
            {"prompt": f"[[sleep 10]] {number}", "callback_url": url, "job_id": f"job-{number}"},
        )
    producer.flush()
    eventually(lambda: worker.metrics()["postback_in_flight"] > 0, 60, "no job is taken")
    own_broker.pause()
    # Delivery is idle and makes no call that could fail. An earlier version noticed the frozen broker only after 60 s.
    eventually(
        lambda: not worker.ready()[0] and not delivery.ready()[0],
        20,
        lambda: f"a process says that it is ready while its broker is frozen: {worker.ready()}, {delivery.ready()}",
    )
    assert worker.alive()
    assert delivery.alive()
    own_broker.resume()
    eventually(lambda: worker.ready()[0] and delivery.ready()[0], 40, "a process is not ready again")
    unprefixed.wait_for_callbacks(41, 60)
    unprefixed.wait_until_nothing_is_left()
    assert set(unprefixed.outcomes().values()) == {"succeeded"}
    assert len(unprefixed.outcomes()) == 41
    assert worker.terminate() == delivery.terminate() == 0


def test_log_lines_of_kafkas_client_are_json_like_all_others(unprefixed: Product, own_broker: Broker) -> None:
    worker = unprefixed.worker("w1", "--engine", "echo", "--with-delivery")
    eventually(lambda: worker.ready()[0], 60, "the worker does not become ready")
    own_broker.kill()
    eventually(lambda: '"log.logger":"librdkafka' in worker.said().replace(" ", ""), 60, worker.said)
    assert {line["service.name"] for line in worker.lines()} == {"worker"}
