"""Workers announce their models on a real broker, and `postback submit --check` warns of models without a worker."""

from __future__ import annotations

import json
import sys

import pytest
from confluent_kafka.admin import AdminClient

from operators.topics import create_topics
from tests.postback_command import environment_of, postback_here
from tests.product import Product, eventually

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


HASTY = (
    "import runpy, sys\n"
    "from workers.inference import announcer\n"
    "announcer.ANNOUNCE_SECONDS = 1.0\n"
    "runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
)
"""Runs a command of Postback that announces its models each second instead of each minute."""


def submit(product: Product, *arguments: str) -> list[str]:
    done = postback_here("submit", "-", *arguments, env=environment_of(product.kafka), given=BATCH)
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("postback: ") for line in done.stderr.splitlines()]


def test_a_check_warns_by_the_models_that_workers_announce_while_they_serve(product: Product) -> None:
    unchecked = "models were not checked: no worker of the shared lanes has announced itself within three minutes"
    ready = "7 jobs can be sent; nothing was sent"
    topic = product.kafka.topics.workers
    assert submit(product, "--check") == [unchecked, ready]

    product.through = (sys.executable, "-c", HASTY)
    worker = product.worker("w1", POSTBACK_WORKER__MODELS='{"alias": null}')
    eventually(lambda: bool(product.read(topic)), 60, "the worker does not announce itself")
    announced = json.loads(product.read(topic)[-1].value() or b"")
    assert (announced["models"], announced["adapters"]) == (["echo", "alias", "default"], [])
    warned, *rest = submit(product, "--check")
    assert warned.startswith('lines 1, 4, 5 and 2 more: model: no worker announces "gpt-4o-mini"; those that run now ')
    assert 'announce "echo", "alias", "default": send with --model any' in warned
    assert rest == [ready]
    assert submit(product)[0] == warned
    assert submit(product, "--check", "--model", "any") == [ready]

    def times() -> list[float]:
        values = [json.loads(record.value() or b"") for record in product.read(topic)]
        return [value["answer_seconds"] for value in values if "answer_seconds" in value]

    eventually(lambda: bool(times()), 60, "the worker does not announce how long its answers take")
    assert 0 < times()[0] < 60

    assert worker.terminate() == 0
    last = product.read(topic)[-1]
    assert (last.key(), last.value()) == (b"w1", None)
    assert submit(product, "--check") == [unchecked, ready]


def test_a_worker_without_the_announcement_topic_ends_and_names_it(product: Product) -> None:
    topic = product.kafka.topics.workers
    admin = AdminClient(product.kafka.client_config())
    admin.delete_topics([topic])[topic].result(20)
    try:
        worker = product.worker("w1")
        assert worker.process.wait(60) == 1
        assert f"the topic {topic} does not exist; `postback topics create` makes it" in worker.said()
    finally:
        create_topics(product.kafka.model_copy(update={"partitions": 4}))
