"""Records for which a handler raises an error, even in `give_up`: the fleet goes on, and an upgrade answers them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from schemas.topics import WEBHOOK_ID
from tests.fleet_here import FleetHere
from tests.messages import headers_of
from tests.postback_command import environment_of, postback_here
from tests.product import eventually
from workers.delivery.deliver import DeliveryHandler
from workers.inference.handler import InferenceHandler
from workers.stage.record import Record

pytestmark = pytest.mark.broker


@contextmanager
def breaking(marks: dict[type[DeliveryHandler | InferenceHandler], bytes]) -> Iterator[None]:
    """Make handlers raise an error for each record with their mark, which the echo engine puts into the result."""

    def broken_at(mark: bytes, whole: Callable[..., Any]) -> Callable[..., Any]:
        def broken(self: object, record: Record, *more: Any) -> Any:
            if mark in record.value:
                raise KeyError(record.value)
            return whole(self, record, *more)

        return broken

    with pytest.MonkeyPatch.context() as patch:
        for handler, mark in marks.items():
            for name in ("handle", "give_up"):
                patch.setattr(handler, name, broken_at(mark, getattr(handler, name)))
        yield


def test_the_fleet_goes_on_despite_defects_of_handlers_and_a_redrive_after_an_upgrade_answers_the_records(
    fleet_here: FleetHere,
) -> None:
    fleet_here.callbacks.up()
    others = [f"other-{number}" for number in range(20)]
    jobs = {
        "inference": "please break-inference",
        "delivery": "please break-delivery",
        **dict.fromkeys(others, "hello"),
    }
    url = fleet_here.callbacks.url
    fleet_here.submit({"job_id": name, "prompt": prompt, "callback_url": url} for name, prompt in jobs.items())
    with breaking({InferenceHandler: b"break-inference", DeliveryHandler: b"break-delivery"}):
        worker = fleet_here.worker("w1", "--engine", "echo", "--with-delivery")
        fleet_here.wait_for_callbacks(len(others) + 1, 60)
        fleet_here.wait_until_nothing_is_left()

        assert fleet_here.outcomes() == {name: "failed" if name == "inference" else "succeeded" for name in jobs}
        assert set(fleet_here.callbacks.events) == {"inference", *others}
        (failed,) = fleet_here.callbacks.events["inference"]
        assert failed.event["data"]["error"]["code"] == "handler_defect"
        metrics = worker.metrics()
        assert (
            metrics["postback_handler_defects_total{handle}"] == metrics["postback_handler_defects_total{give_up}"] == 2
        )
        assert metrics["postback_dead_letters_total{handler_defect}"] == 2
        eventually(lambda: worker.ready() == (True, []), 60, worker.said)
        assert worker.terminate() == 0
        assert (worker.said().count("give-up-raised"), worker.said().count("please")) == (2, 0)

    letters = {letter["job_id"]: letter for letter in dead_letters(fleet_here, "list", "--json")}
    kinds = {name: (letter["kind"], letter["reason"], letter["obstacle"]) for name, letter in letters.items()}
    assert kinds == {
        "inference": ("job", "handler_defect", None),
        "delivery": ("callback", "handler_defect", None),
    }
    (shown,) = dead_letters(fleet_here, "show", letters["inference"]["id"], "--json")
    assert shown["value"]["prompt"] == "please break-inference"

    fleet_here.worker("w2", "--engine", "echo", "--with-delivery")
    done = dead_letters(fleet_here, "redrive", "--reason", "handler_defect", "--yes", "--json")
    assert (done["redriven"], done["held"]) == (2, {})
    events = fleet_here.callbacks.events
    eventually(lambda: len(fleet_here.callbacks.events["inference"]) == 2, 60, lambda: f"{len(events)} were called")
    eventually(lambda: "delivery" in fleet_here.callbacks.events, 60, "the callback was not delivered")
    answered = fleet_here.callbacks.events["inference"]
    assert [one.event["type"] for one in answered] == ["inference.failed", "inference.succeeded"]
    written = [message for message in fleet_here.read(fleet_here.kafka.topics.results) if message.key() == b"inference"]
    assert {headers_of(message)[WEBHOOK_ID].decode() for message in written} == {answered[0].webhook_id}
    assert len(written) == 2


def dead_letters(fleet_here: FleetHere, *arguments: str) -> Any:
    """The JSON that `postback dead-letters` prints with these arguments."""
    done = postback_here("dead-letters", *arguments, env=environment_of(fleet_here.kafka))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
