"""Workers announce their models on a real broker, and `postback submit --check` warns of models without a worker."""

from __future__ import annotations

import json

import pytest
from confluent_kafka.admin import AdminClient

from cli.operations.topics import create_topics
from tests.fleet_here import FleetHere
from tests.postback_command import environment_of, postback_here
from tests.product import Fleet, Role, eventually
from workers.inference import announcer

pytestmark = pytest.mark.broker

BATCH = "".join(
    json.dumps(
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": "Why?"}]},
        }
    )
    + "\n"
    for number, model in enumerate(["gpt-4o-mini", "echo", "alias", *["gpt-4o-mini"] * 4])
)


def submit(fleet: Fleet[Role], *arguments: str) -> list[str]:
    done = postback_here("submit", "-", *arguments, env=environment_of(fleet.kafka), given=BATCH)
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("postback: ") for line in done.stderr.splitlines()]


def test_a_check_warns_by_the_models_that_workers_announce_while_they_serve(
    fleet_here: FleetHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    unchecked = "models were not checked: no worker of the shared lanes has announced itself within three minutes"
    ready = "7 jobs can be sent; nothing was sent"
    topic = fleet_here.kafka.topics.workers
    assert submit(fleet_here, "--check") == [unchecked, ready]

    monkeypatch.setattr(announcer, "ANNOUNCE_SECONDS", 1.0)
    worker = fleet_here.worker("w1", POSTBACK_WORKER__MODELS='{"alias": null}')
    eventually(lambda: bool(fleet_here.read(topic)), 60, "the worker does not announce itself")
    announced = json.loads(fleet_here.read(topic)[-1].value() or b"")
    assert (announced["models"], announced["adapters"]) == (["echo", "alias", "default"], [])
    warned, *rest = submit(fleet_here, "--check")
    assert warned.startswith('lines 1, 4, 5 and 2 more: model: no worker announces "gpt-4o-mini"; those that run now ')
    assert 'announce "echo", "alias", "default": send with --model any' in warned
    assert rest == [ready]
    assert submit(fleet_here)[0] == warned
    assert submit(fleet_here, "--check", "--model", "any") == [ready]

    def times() -> list[float]:
        values = [json.loads(record.value() or b"") for record in fleet_here.read(topic)]
        return [value["answer_seconds"] for value in values if "answer_seconds" in value]

    eventually(lambda: bool(times()), 60, "the worker does not announce how long its answers take")
    assert 0 < times()[0] < 60

    assert worker.terminate() == 0
    last = fleet_here.read(topic)[-1]
    assert (last.key(), last.value()) == (b"w1", None)
    assert submit(fleet_here, "--check") == [unchecked, ready]


def test_a_worker_without_the_announcement_topic_ends_and_names_it(fleet_here: FleetHere) -> None:
    topic = fleet_here.kafka.topics.workers
    admin = AdminClient(fleet_here.kafka.client_config())
    admin.delete_topics([topic])[topic].result(20)
    # The broker confirms the deletion before it stops showing the topic.
    eventually(lambda: topic not in admin.list_topics(timeout=20).topics, 60, "the topic is still there")
    try:
        worker = fleet_here.worker("w1")
        assert worker.ended(60) == 1
        assert f"the topic {topic} does not exist; `postback topics create` makes it" in worker.said()
    finally:
        create_topics(fleet_here.kafka.model_copy(update={"partitions": 4}))
