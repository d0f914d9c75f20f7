"""`results` and `deliveries` tell a job that still waits in a lane from a job that was never seen."""

from __future__ import annotations

import pytest

from cli.operations import unanswered
from producers.scan import Scanner
from tests.fleet_here import FleetHere
from tests.postback_command import environment_of, postback_here
from workers.stage.progress import done_offsets

pytestmark = pytest.mark.broker


def test_a_waiting_job_and_one_that_was_never_seen_are_told_apart(
    fleet_here: FleetHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet_here.submit({"job_id": f"job_{number}", "prompt": "Why?"} for number in range(8))
    fleet_here.put([b'{"job_id": "job_bad", "prompt": 7}', b"\xff"])
    env = environment_of(fleet_here.kafka)

    def told(*command: str) -> tuple[int, str]:
        done = postback_here(*command, env=env)
        return done.returncode, done.stderr.removeprefix("postback: ")

    named = ("results", "--id", "job_5", "--id", "job_bad", "--id", "nobody")
    none = "0 of 3 jobs have a result, 3 without a result"
    assert told(*named) == (1, f"{none} (2 still waiting, 1 never seen)\n")
    assert told(*named, "--tenant", "acme") == (1, f"{none} (3 never seen)\n")
    assert told("deliveries", "job_5") == (1, "job_5 still waits for its answer, so it has no callback yet\n")
    assert told("deliveries", "nobody") == (1, "nobody was never seen: no lane and no kept result has it\n")
    monkeypatch.setattr(unanswered, "LOOK_SECONDS", 0.0)
    assert told("deliveries", "nobody")[1].startswith("nobody was not seen within 0 s of reading: no lane")
    monkeypatch.undo()

    fleet_here.worker("w1")
    fleet_here.wait_for_results(10, 60)
    fleet_here.wait_until_nothing_is_left()
    with Scanner(fleet_here.kafka) as scanner:
        look = unanswered.look_into_lanes(fleet_here.kafka, scanner, done_offsets, {"job_5"})
    assert look == unanswered.Look(frozenset(), is_whole=True)
