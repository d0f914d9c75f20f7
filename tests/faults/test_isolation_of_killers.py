"""A record that kills its process or engine is given up after it ran alone three times; no neighbour is blamed."""

from __future__ import annotations

import time

import pytest

from tests.faults.kernel_fleet import Ledgers, StageProcesses
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
