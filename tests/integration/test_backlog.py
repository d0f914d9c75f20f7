"""`postback backlog`: waiting records, counted from Kafka alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from cli.operations.topics import create_topics
from schemas.settings import KafkaSettings
from tests.fleet_here import FleetHere
from tests.postback_command import environment_of, postback_here
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


def test_waiting_records_are_shown_without_any_process_until_they_are_done(fleet_here: FleetHere) -> None:
    fleet_here.kafka = fleet_here.kafka.model_copy(update={"partitions": 4})
    create_topics(fleet_here.kafka, engines=("big",))
    names = fleet_here.kafka.topics
    fleet_here.submit({"job_id": f"job_{number}", "prompt": "Why?"} for number in range(10))
    fleet_here.submit([{"prompt": "Why?"}] * 3, topic=names.requests("big", bulk=True))

    before = told(fleet_here.kafka)
    assert (before["jobs"], before["callbacks"], before["total"]) == (13, 0, 13)
    waiting = {each["topic"]: each["backlog"] for each in before["topics"] if each["backlog"]}
    assert waiting == {names.requests(): 10, names.requests("big", bulk=True): 3}

    worker = fleet_here.worker("w1")
    fleet_here.wait_for_results(10, 60)
    fleet_here.wait_until_nothing_is_left()
    assert worker.terminate() == 0
    after = told(fleet_here.kafka)
    assert after["jobs"] == 3
    assert after["callbacks"] >= 10
    lines = postback_here("backlog", env=environment_of(fleet_here.kafka)).stdout.splitlines()
    assert lines[0].split() == ["topic", "group", "committed", "end", "backlog"]
    assert [names.requests("big", bulk=True), "inference", "0", "3", "3"] in [line.split() for line in lines]
    assert lines[-1] == f"{after['total']} in all: 3 jobs, {after['callbacks']} results and callbacks"


def test_done_records_above_the_base_do_not_wait(fleet_here: FleetHere) -> None:
    names = fleet_here.kafka.topics
    fleet_here.submit({"prompt": "Why?"} for _ in range(24))  # six jobs go to each of four partitions
    commit(fleet_here.kafka, "inference", names.requests(), Progress(base=1, done=0b1010, open=True))

    [lane] = [each for each in told(fleet_here.kafka)["topics"] if each["topic"] == names.requests()]
    assert lane["partitions"][0] == {"partition": 0, "committed": 1, "end": 6, "backlog": 3}
    assert (lane["committed"], lane["end"], lane["backlog"]) == (1, 24, 21)
