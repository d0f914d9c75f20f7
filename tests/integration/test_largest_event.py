"""The largest possible event passes every topic on its way, with the same bytes on each attempt."""

from __future__ import annotations

import json

import pytest

from cli.devkit.receiver import Behaviour
from schemas import topics as names
from schemas.codec import write_result
from schemas.event import event_body
from schemas.outcome import Outcome
from schemas.result import MAX_RESULT_BYTES, Result
from schemas.signature import verify
from tests.fleet_here import FleetHere
from tests.messages import value_of
from tests.postback_command import environment_of, postback_here
from tests.product import CLOCK, eventually

pytestmark = pytest.mark.broker

TENANT, JOB, WEBHOOK = "t" * 63, "j" * 256, "m" * 256
LONGEST_URL = 2048
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ATTEMPTS = 3
"""The number of attempts that a test's fleet makes before a dead letter."""


def largest_result() -> bytes:
    """The largest result, with letters of one to four bytes and characters that JSON has to escape."""
    result = Result(job_id=JOB, outcome=Outcome.SUCCEEDED, text="", created_at=1_700_000_000)
    text = 'Ω🪝ü"\\\n' * 60_000
    text += "x" * (MAX_RESULT_BYTES - len(write_result(result.model_copy(update={"text": text}))))
    value = write_result(result.model_copy(update={"text": text}))
    assert len(value) == MAX_RESULT_BYTES
    return value


def largest_job() -> dict[str, object]:
    """The largest job: each quotation mark takes two bytes in the job, and four in the echo worker's JSON answer."""
    return {"job_id": "answered", "prompt": '"' * 230_000, "response_format": {"type": "json_object"}}


def test_the_largest_event_passes_every_topic_and_is_the_same_on_each_attempt(fleet_here: FleetHere) -> None:
    kafka, callbacks, value = fleet_here.kafka, fleet_here.callbacks, largest_result()
    callbacks.tenants = (TENANT, "default")
    callbacks.up(Behaviour(status=204, fail_first=ATTEMPTS))
    url = f"{callbacks.url}&padding=".ljust(LONGEST_URL, "x")
    headers = {names.TENANT: TENANT, names.JOB_ID: JOB, names.WEBHOOK_ID: WEBHOOK, names.TRACEPARENT: TRACE}
    headers |= {names.CALLBACK_URL: url}
    fleet_here.worker("w1", "--engine", "echo", "--with-delivery")
    fleet_here.put([value], [(name, said.encode()) for name, said in headers.items()], topic=kafka.topics.results)
    fleet_here.submit([{**largest_job(), "callback_url": url}])

    eventually(lambda: len(fleet_here.dead_letters()) == 2, 60, lambda: f"there is {fleet_here.dead_letters()}")
    assert {letter["reason"] for letter in fleet_here.dead_letters()} == {"callback_exhausted"}
    letters = [record.value() for record in fleet_here.read(kafka.topics.dead_letters)]
    assert value in letters
    for tier in kafka.topics.tiers.values():
        assert {record.value() for record in fleet_here.read(tier)} == set(letters)
    done = postback_here("dead-letters", "redrive", "--json", "--yes", env=environment_of(kafka))
    assert (done.returncode, json.loads(done.stdout)["redriven"]) == (0, 2), done.stderr
    fleet_here.wait_until_nothing_is_left()

    [answered] = [value_of(record) for record in fleet_here.read(kafka.topics.results) if record.key() == b"answered"]
    assert MAX_RESULT_BYTES - 2_000 < len(answered) <= MAX_RESULT_BYTES
    assert {name: [one.status for one in got] for name, got in callbacks.events.items()} == {
        name: [503] * ATTEMPTS + [204] for name in (JOB, "answered")
    }
    for one in callbacks.events[JOB]:
        assert (one.webhook_id, one.headers[names.TRACEPARENT]) == (WEBHOOK, TRACE)
        assert one.body == event_body(value, WEBHOOK, TENANT)
        verify(one.headers, one.body, fleet_here.keyring.secrets(TENANT, CLOCK.time()), [], one.received_at)
    assert {one.body for one in callbacks.events["answered"]} == {
        event_body(answered, callbacks.events["answered"][0].webhook_id or "", "default")
    }
    said = fleet_here.attempts()
    assert {one["bytes"] for one in said} == {len(callbacks.events[name][0].body) for name in (JOB, "answered")}
