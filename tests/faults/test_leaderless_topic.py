"""A topic whose partitions have no leader delays only workers that write to that topic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from cli.devkit.broker import Broker
from schemas.settings import KafkaSettings
from telemetry.clock import Deadline, SystemClock
from tests.product import PARTITIONS, Product, eventually, running

BROKERS = 3
JOBS = 40


@pytest.fixture
def own_broker(clean_processes: None) -> Iterator[Broker]:
    with Broker.start(brokers=BROKERS) as broker:
        yield broker


@pytest.fixture
def own_product(
    own_broker: Broker, make_fleet: Callable[[str, int], KafkaSettings], tmp_path: Path
) -> Iterator[Product]:
    with running(make_fleet(own_broker.bootstrap_servers, BROKERS), tmp_path) as product:
        yield product


def lay_on_one_broker(kafka: KafkaSettings, topic: str, broker: int) -> None:
    """Recreate the topic with one copy of each partition, all on this broker."""
    admin, clock = AdminClient(kafka.client_config()), SystemClock()
    admin.delete_topics([topic])[topic].result(20)
    deadline = Deadline.after(clock, 30)
    while topic in admin.list_topics(timeout=20).topics:
        assert not deadline.passed
        clock.sleep(0.1)
    layout = [[broker]] * PARTITIONS
    admin.create_topics([NewTopic(topic, PARTITIONS, replica_assignment=layout)])[topic].result(20)


def is_led(kafka: KafkaSettings, topic: str) -> bool:
    partitions = AdminClient(kafka.client_config()).list_topics(topic, timeout=20).topics[topic].partitions
    return all(partition.leader >= 0 for partition in partitions.values())


def test_a_new_worker_answers_jobs_while_dead_letters_have_no_leader_and_writes_the_letter_once_they_have(
    own_broker: Broker, own_product: Product
) -> None:
    product, letters = own_product, own_product.kafka.topics.dead_letters
    lay_on_one_broker(product.kafka, letters, BROKERS)
    own_broker.kill(BROKERS - 1)
    eventually(lambda: not is_led(product.kafka, letters), 60, "the dead letters still have a leader")

    worker = product.worker("w1")
    product.submit({"job_id": f"job-{number}", "prompt": "x"} for number in range(JOBS))
    product.wait_for_results(JOBS, 90)
    eventually(lambda: worker.ready()[0], 60, lambda: f"the worker is not ready: {worker.ready()[1]}")
    assert not is_led(product.kafka, letters)

    product.put([b"{"])
    eventually(lambda: not worker.ready()[0], 60, "the worker is ready although it cannot settle a letter")
    own_broker.restart(BROKERS - 1)
    product.wait_for_results(JOBS + 1, 90)
    assert [letter["reason"] for letter in product.dead_letters()] == ["rejected"]
    assert worker.terminate() == 0
