"""`postback cancel` with a real worker, before the worker starts and while it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fleet_here import FleetHere
from tests.postback_command import environment_of, postback_here
from tests.product import eventually

pytestmark = pytest.mark.broker


def test_a_job_is_cancelled_while_it_waits_and_while_it_runs_and_its_callback_says_so(fleet_here: FleetHere) -> None:
    fleet_here.callbacks.up()
    env, url = environment_of(fleet_here.kafka), fleet_here.callbacks.url
    jobs = {"waiting": "never", "running": "[[sleep 600]]", "done": "quick", "wanted": "after all"}
    fleet_here.submit({"job_id": name, "prompt": prompt, "callback_url": url} for name, prompt in jobs.items())
    assert postback_here("cancel", "waiting", "running", "--tenant", "somebody-else", env=env).returncode == 0
    cancelled = postback_here("cancel", "waiting", env=env)
    assert cancelled.stderr == "postback: 1 jobs are to be cancelled, unless they have a result already\n"
    assert postback_here("cancel", "wanted", env=env).returncode == 0
    taken_back = postback_here("cancel", "--undo", "wanted", env=env)
    assert taken_back.stderr == "postback: 1 cancellations are taken back; jobs of these ids are answered again\n"
    worker = fleet_here.worker("w1", "--engine", "echo", "--with-delivery")
    fleet_here.wait_for_results(3, 60)
    eventually(lambda: worker.metrics()["postback_in_flight"] == 1, 30, "the job does not run")
    assert postback_here("cancel", "running", "done", env=env).returncode == 0
    fleet_here.wait_for_callbacks(4, 60)

    outcomes = {"waiting": "cancelled", "running": "cancelled", "done": "succeeded", "wanted": "succeeded"}
    assert fleet_here.outcomes() == outcomes
    events = fleet_here.callbacks.events
    assert {job: {one.event["type"] for one in repeats} for job, repeats in events.items()} == {
        job: {f"inference.{outcome}"} for job, outcome in outcomes.items()
    }


def test_a_receipt_or_a_file_of_ids_cancels_all_jobs_that_were_accepted(fleet_here: FleetHere, tmp_path: Path) -> None:
    env, receipt = environment_of(fleet_here.kafka), tmp_path / "receipt.jsonl"
    given = b"".join(b'{"prompt": "never", "job_id": "j%d"}\n' % number for number in range(4))
    sent = postback_here("submit", "-", "--tenant", "acme", "--receipt", receipt, env=env, given=given)
    last = sent.stdout.splitlines()[3]
    lines = [json.loads(line) for line in receipt.read_text().splitlines()]
    lines[3]["accepted"] = False  # pretends that this job was too large for a record
    receipt.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    done = postback_here("cancel", "--ids", receipt, env=env)
    assert done.stderr == "postback: 3 jobs are to be cancelled, unless they have a result already\n"
    undone = postback_here("cancel", "--undo", "--ids", "-", "--tenant", "acme", env=env, given=b"j0\n")
    assert undone.stderr == "postback: 1 cancellations are taken back; jobs of these ids are answered again\n"
    fleet_here.worker("w1")
    fleet_here.wait_for_results(4, 60)
    assert fleet_here.outcomes() == {"j0": "succeeded", "j1": "cancelled", "j2": "cancelled", last: "succeeded"}


def test_cancelling_nothing_is_refused() -> None:
    done = postback_here("cancel", env=environment_of())
    assert (done.returncode, done.stderr) == (2, "postback: say which jobs: ID or --ids\n")


def test_a_text_that_is_no_id_is_refused() -> None:
    done = postback_here("cancel", "a job", env=environment_of())

    assert (done.returncode, done.stderr) == (
        2,
        "postback: ID: 1 to 256 characters of printable ASCII without spaces\n",
    )
