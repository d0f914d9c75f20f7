"""`postback models bench` on a running fleet, and on one that does not answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from telemetry.clock import SystemClock
from tests.fleet_here import FleetHere
from tests.postback_command import environment_of, postback_here
from workers.delivery.keyring import Keyring


@pytest.mark.broker
def test_the_command_measures_a_fleet_and_says_if_a_job_did_not_succeed(fleet_here: FleetHere) -> None:
    env = environment_of(
        fleet_here.kafka,
        POSTBACK_ENV="development",
        POSTBACK_KEYRING=fleet_here.folder / "keyring.json",
        POSTBACK_EGRESS__ALLOW_CALLBACKS="127.0.0.1/32",
    )
    nobody = postback_here("models", "bench", "--model", "echo", "--jobs", "3", "--timeout", "1", env=env)
    assert nobody.returncode == 1
    assert "3 of 3 jobs did not succeed in time" in nobody.stderr
    assert nobody.stdout.splitlines()[1].split()[:3] == ["3", "0", "0"]

    fleet_here.worker("w1")
    fleet_here.deliver("d1")
    done = postback_here("models", "bench", "--model", "echo", "--jobs", "40", "--json", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert {name: said[name] for name in ("model", "jobs", "accepted", "called_back", "outcomes")} == {
        "model": "echo",
        "jobs": 40,
        "accepted": 40,
        "called_back": 40,
        "outcomes": {"succeeded": 40},
    }
    times = said["submit_to_callback_ms"]
    assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["max"] <= 1000 * said["seconds"]
    assert said["jobs_per_second"] > 0


@pytest.mark.parametrize("options", [("--model", "\x1b[2J"), ("--model", "echo", "--callback-url", "no url")])
def test_options_that_make_no_job_send_nothing(tmp_path: Path, options: tuple[str, ...]) -> None:
    Keyring.create(tmp_path / "keyring.json", SystemClock())
    env = environment_of(POSTBACK_KEYRING=tmp_path / "keyring.json")
    done = postback_here("models", "bench", *options, env=env)
    assert done.returncode == 2
    assert f"{options[-2]}: is not valid in a job; nothing was sent" in done.stderr
