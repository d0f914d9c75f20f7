"""`postback backlog`: waiting records, counted from Kafka alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from operators.topics import create_topics
from schemas.settings import KafkaSettings
from tests.postback_command import environment_of, postback, postback_here
from tests.product import Product
from workers.stage.progress import Progress

pytestmark = pytest.mark.broker


def told(fleet: KafkaSettings) -> dict[str, Any]:
    done = postback_here("backlog", "--json", env=environment_of(fleet))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def commit(fleet: KafkaSettings, group: str, topic: str, progress: Progress) -> None:
    """Commit progress as a stage does, without a stage."""
    consumer = Consumer({**fleet.client_config(), "group.id": f"{fleet.topic_prefix}{group}"})
    place = TopicPartition(topic, 0, progress.base, metadata=progress.encode())
    consumer.commit(offsets=[place], asynchronous=False)
    consumer.close()


def test_waiting_records_are_shown_without_any_process_until_they_are_done(product: Product) -> None:
    product.kafka = product.kafka.model_copy(update={"partitions": 4})
    create_topics(product.kafka, engines=("big",))
    names = product.kafka.topics
    product.submit({"job_id": f"job_{number}", "prompt": "Why?"} for number in range(10))
    product.submit([{"prompt": "Why?"}] * 3, topic=names.requests("big", bulk=True))

    before = told(product.kafka)
    assert (before["jobs"], before["callbacks"], before["total"]) == (13, 0, 13)
    waiting = {each["topic"]: each["backlog"] for each in before["topics"] if each["backlog"]}
    assert waiting == {names.requests(): 10, names.requests("big", bulk=True): 3}

    worker = product.worker("w1")
    product.wait_for_results(10, 60)
    product.wait_until_nothing_is_left()
    assert worker.terminate() == 0
    after = told(product.kafka)
    assert after["jobs"] == 3
    assert after["callbacks"] >= 10
    lines = postback("backlog", env=environment_of(product.kafka)).stdout.splitlines()
    assert lines[0].split() == ["topic", "group", "committed", "end", "backlog"]
    assert [names.requests("big", bulk=True), "inference", "0", "3", "3"] in [line.split() for line in lines]
    assert lines[-1] == f"{after['total']} in all: 3 jobs, {after['callbacks']} results and callbacks"


def test_done_records_above_the_base_do_not_wait(product: Product) -> None:
    names = product.kafka.topics
    product.submit({"prompt": "Why?"} for _ in range(24))  # six jobs go to each of four partitions
    commit(product.kafka, "inference", names.requests(), Progress(base=1, done=0b1010, open=True))

    [lane] = [each for each in told(product.kafka)["topics"] if each["topic"] == names.requests()]
    assert lane["partitions"][0] == {"partition": 0, "committed": 1, "end": 6, "backlog": 3}
    assert (lane["committed"], lane["end"], lane["backlog"]) == (1, 24, 21)


def test_a_missing_fleet_is_reported_as_missing_and_not_as_an_empty_backlog(fleet: KafkaSettings) -> None:
    misspelt = fleet.model_copy(update={"topic_prefix": f"x{fleet.topic_prefix}"})
    done = postback_here("backlog", env=environment_of(misspelt))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"postback: the topic {misspelt.topics.requests()} does not exist")


def test_a_missing_broker_is_reported_in_one_line() -> None:
    done = postback("backlog", env=environment_of(KafkaSettings(bootstrap_servers="127.0.0.1:1")))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
