"""An engine that dies at every job, as on a sick GPU: the worker ends, and no job is given up."""

from __future__ import annotations

import json

import pytest

from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.fleet_here import FleetHere
from tests.messages import headers_of

pytestmark = pytest.mark.broker

JOBS = 60


def test_an_engine_that_dies_at_every_job_ends_its_worker_and_another_one_answers_them_all(
    ledgers: Ledgers, processes: StageProcesses
) -> None:
    ledgers.submit({"id": number, "ms": 20} for number in range(JOBS))
    processes.sick = {"a"}
    for _ in range(2):  # start the worker twice, as an orchestrator would restart it
        processes.start("a")
        assert processes.running["a"].wait(90) != 0
    assert processes.log("a").count("nothing-completes") == 2
    assert ledgers.read(ledgers.kafka.topics.results) == ledgers.read(ledgers.kafka.topics.dead_letters) == []
    processes.start("b")
    ledgers.wait_for_results(JOBS, 90)
    ledgers.assert_each_exactly_once(JOBS)
    outcomes = {headers_of(message)["outcome"] for message in ledgers.read(ledgers.kafka.topics.results)}
    assert outcomes == {b"succeeded"}
    assert ledgers.read(ledgers.kafka.topics.dead_letters) == []
    assert "partition-left-open" not in processes.log("b"), "the sick worker did not give its partitions back"


def test_a_worker_whose_engine_completes_nothing_ends_with_one_line_that_says_why(fleet_here: FleetHere) -> None:
    """An invalid job completes without the engine, and so is no proof that the engine works."""
    dying = json.dumps({"prompt": "[[crash-engine]]"}).encode()
    fleet_here.put([dying, b"no job", dying, dying, b"no job", dying, dying, dying])
    worker = fleet_here.worker("w1")
    assert worker.ended(90) == 1
    said = worker.lines()[-1]["message"]
    assert said.startswith("the engine died each time at jobs that ran alone")
    assert "No job was given up" in said
    reasons = {headers_of(letter)["reason"] for letter in fleet_here.read(fleet_here.kafka.topics.dead_letters)}
    assert reasons <= {b"rejected"}
