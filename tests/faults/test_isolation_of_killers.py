"""Records and machines that kill engines: a record is given up after it ran alone three times, and no neighbour is."""

from __future__ import annotations

import json
import time

import pytest

from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.fleet_here import FleetHere
from tests.messages import headers_of, value_of

JOBS = 60
KILLER = 5


@pytest.mark.parametrize("deed", ["kill", "crash"])
def test_a_record_that_kills_its_worker_or_its_engine_is_given_up_alone(
    ledgers: Ledgers, processes: StageProcesses, deed: str
) -> None:
    ledgers.submit(({"id": n, "ms": 100, deed: n == KILLER} for n in range(JOBS)), partitions=2)
    processes.window = 8
    processes.start("a")
    deaths = 0
    end = time.monotonic() + 200
    while sum(ledgers.results().values()) < JOBS and time.monotonic() < end:
        deaths += processes.keep_alive("a")
        time.sleep(0.2)
    ledgers.assert_each_exactly_once(JOBS)
    assert (deaths >= 3) == (deed == "kill")
    outcomes = {value_of(m).decode(): headers_of(m)["outcome"] for m in ledgers.read(ledgers.kafka.topics.results)}
    assert {job for job, outcome in outcomes.items() if outcome == b"failed"} == {str(KILLER)}
    (letter,) = ledgers.read(ledgers.kafka.topics.dead_letters)
    assert letter.value() == str(KILLER).encode()
    assert headers_of(letter) == {"reason": b"worker_killed", "attempts": b"3"}


pytestmark = pytest.mark.broker


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
