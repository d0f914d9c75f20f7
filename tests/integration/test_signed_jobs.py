"""A worker that accepts only signed jobs: an operator's job is answered, and a stranger's job calls no tenant back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fleet_here import FleetHere
from tests.postback_command import environment_of, postback_here
from tests.product import eventually

pytestmark = pytest.mark.broker

SECRET = "s" * 32


def test_a_stranger_with_access_to_the_topic_gets_no_callback_signed_for_a_tenant(
    fleet_here: FleetHere, tmp_path: Path
) -> None:
    file = tmp_path / "trust"
    file.write_text(f"{SECRET}\n")
    fleet_here.callbacks.tenants = ["acme", "default"]
    fleet_here.callbacks.up()
    trust = {"POSTBACK_TRUST__SECRET_FILE": str(file)}
    fleet_here.worker("w", "--engine", "echo", "--with-delivery", POSTBACK_WORKER__TRUST="signed", **trust)

    forged = {"job_id": "forged", "prompt": "Hello", "callback_url": fleet_here.callbacks.url}
    fleet_here.put([json.dumps(forged).encode()], [("tenant", b"acme"), ("tenant-signature", b"v1,none")])
    lines = [
        {"job_id": "signed", "prompt": "Hello", "callback_url": fleet_here.callbacks.url},
        {"job_id": "unserved", "prompt": "Hello", "model_id": "nothing"},
    ]
    env = environment_of(fleet_here.kafka, POSTBACK_ENV="development", **trust)
    given = "\n".join(map(json.dumps, lines)).encode()
    sent = postback_here("submit", "-", "--tenant", "acme", env=env, given=given)
    assert sent.returncode == 0, sent.stderr
    fleet_here.wait_for_results(3, 60)
    fleet_here.wait_for_callbacks(1, 30)

    again = postback_here("dead-letters", "redrive", "--tenant", "acme", "--yes", env=env)
    assert again.returncode == 0, again.stderr
    eventually(lambda: len(fleet_here.dead_letters()) == 3, 30, "the job that was put back is not rejected again")

    letters = sorted(
        (each["tenant"], each["job-id"] == "unserved", each["reason"]) for each in fleet_here.dead_letters()
    )
    assert letters == [("acme", True, "rejected"), ("acme", True, "rejected"), ("default", False, "untrusted")]
    assert {each["job_id"] for each in fleet_here.results()} & {"forged", "signed", "unserved"} == {
        "signed",
        "unserved",
    }
    assert list(fleet_here.callbacks.events) == ["signed"]
    assert [one.problem for one in fleet_here.callbacks.received if not one.verified] == []
