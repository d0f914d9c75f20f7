"""Records for which a handler raises an error, even in `give_up`: the fleet goes on, and an upgrade answers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.topics import WEBHOOK_ID
from tests.messages import headers_of
from tests.postback_command import environment_of, postback
from tests.product import Product, eventually

pytestmark = pytest.mark.broker

DEFECTS = """
from workers.delivery.deliver import DeliveryHandler
from workers.inference.handler import InferenceHandler


def break_at(handler, mark):
    for name in ("handle", "give_up"):
        def broken(self, record, *more, whole=getattr(handler, name)):
            if mark in record.value:
                raise KeyError(record.value)
            return whole(self, record, *more)

        setattr(handler, name, broken)


break_at(InferenceHandler, b"break-inference")
break_at(DeliveryHandler, b"break-delivery")
"""
"""A `sitecustomize.py`, which Python imports at start. The echo engine puts a job's words into its result."""


def test_the_fleet_goes_on_despite_defects_of_handlers_and_a_redrive_after_an_upgrade_answers_the_records(
    product: Product, tmp_path: Path
) -> None:
    product.callbacks.up()
    (tmp_path / "defective").mkdir()
    (tmp_path / "defective" / "sitecustomize.py").write_text(DEFECTS)
    others = [f"other-{number}" for number in range(20)]
    jobs = {
        "inference": "please break-inference",
        "delivery": "please break-delivery",
        **dict.fromkeys(others, "hello"),
    }
    url = product.callbacks.url
    product.submit({"job_id": name, "prompt": prompt, "callback_url": url} for name, prompt in jobs.items())
    defective = str(tmp_path / "defective")
    worker = product.worker("w1", "--engine", "echo", "--with-delivery", PYTHONPATH=defective)
    product.wait_for_callbacks(len(others) + 1, 60)
    product.wait_until_nothing_is_left()

    assert product.outcomes() == {name: "failed" if name == "inference" else "succeeded" for name in jobs}
    assert set(product.callbacks.events) == {"inference", *others}
    (failed,) = product.callbacks.events["inference"]
    assert failed.event["data"]["error"]["code"] == "handler_defect"
    metrics = worker.metrics()
    assert metrics["postback_handler_defects_total{handle}"] == metrics["postback_handler_defects_total{give_up}"] == 2
    assert metrics["postback_dead_letters_total{handler_defect}"] == 2
    eventually(lambda: worker.ready() == (True, []), 60, worker.said)
    assert worker.terminate() == 0
    assert (worker.said().count("give-up-raised"), worker.said().count("please")) == (2, 0)

    letters = {letter["job_id"]: letter for letter in dead_letters(product, "list", "--json")}
    kinds = {name: (letter["kind"], letter["reason"], letter["obstacle"]) for name, letter in letters.items()}
    assert kinds == {
        "inference": ("job", "handler_defect", None),
        "delivery": ("callback", "handler_defect", None),
    }
    (shown,) = dead_letters(product, "show", letters["inference"]["id"], "--json")
    assert shown["value"]["prompt"] == "please break-inference"

    product.worker("w2", "--engine", "echo", "--with-delivery")
    done = dead_letters(product, "redrive", "--reason", "handler_defect", "--yes", "--json")
    assert (done["redriven"], done["held"]) == (2, {})
    events = product.callbacks.events
    eventually(lambda: len(product.callbacks.events["inference"]) == 2, 60, lambda: f"{len(events)} were called")
    eventually(lambda: "delivery" in product.callbacks.events, 60, "the callback was not delivered")
    answered = product.callbacks.events["inference"]
    assert [one.event["type"] for one in answered] == ["inference.failed", "inference.succeeded"]
    written = [message for message in product.read(product.kafka.topics.results) if message.key() == b"inference"]
    assert {headers_of(message)[WEBHOOK_ID].decode() for message in written} == {answered[0].webhook_id}
    assert len(written) == 2


def dead_letters(product: Product, *arguments: str) -> Any:
    """The JSON that `postback dead-letters` prints with these arguments."""
    done = postback("dead-letters", *arguments, env=environment_of(product.kafka))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
