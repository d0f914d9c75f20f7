"""Who waits for whom: a slow job holds up nobody, a rebalance as little as can be, a double replica not at all."""

from __future__ import annotations

import json
import time

from kernel_fleet import Ledgers, StageProcesses, eventually


def test_a_slow_job_at_the_base_of_a_partition_does_not_stop_the_others(
    ledgers: Ledgers, processes: StageProcesses
) -> None:
    jobs = ledgers.submit(({"id": n, "ms": 600_000 if n == 0 else 1} for n in range(5_000)), partitions=1)
    processes.drain_seconds = 0.5
    processes.start("a")
    ledgers.wait_for_results(jobs - 1, 60)
    assert ledgers.lag() == jobs


def test_a_worker_that_gives_partitions_away_is_kept_busy_by_those_it_keeps(
    ledgers: Ledgers, processes: StageProcesses
) -> None:
    jobs = ledgers.submit({"id": n, "ms": 3_000 if n % 200 == 0 else 100} for n in range(2_400))
    processes.window = 20
    processes.start("a")
    ledgers.wait_for_results(100, 30)
    processes.start("b")
    eventually(lambda: "partitions-revoked" in processes.log("a"), 30, "nothing is given to the newcomer")
    assert "ran-dry" not in processes.log("a")
    ledgers.wait_for_results(jobs, 90)
    ledgers.assert_each_exactly_once(jobs)


def test_two_workers_with_one_identity_end_as_one_and_answer_once(ledgers: Ledgers, processes: StageProcesses) -> None:
    jobs = ledgers.submit({"id": number, "ms": 200} for number in range(6_000))
    processes.window = 40
    processes.start("same")
    first = processes.running.pop("same")
    processes.start("same")
    second = processes.running["same"]
    end = time.monotonic() + 60
    while first.poll() is None and second.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    codes = {first.poll(), second.poll()}
    processes.running["other"] = first
    assert len(codes - {None}) == 1, "one of the two has to end"
    assert 0 not in codes, "it has to say that something is wrong"
    assert "inference.same" in processes.log("same")
    assert "POSTBACK_REPLICA" in processes.log("same")
    processes.start("third")
    ledgers.wait_for_results(jobs, 90)
    ledgers.assert_each_exactly_once(jobs)


def test_what_retention_removed_before_a_worker_came_is_said_and_the_rest_is_handled(
    ledgers: Ledgers, processes: StageProcesses
) -> None:
    jobs = ledgers.submit(({"id": n, "ms": 1} for n in range(40)), partitions=1)
    processes.start("a")
    ledgers.wait_for_results(jobs, 30)
    assert processes.terminate("a") == 0
    ledgers.submit(({"id": n, "ms": 1} for n in range(40, 80)), partitions=1)
    ledgers.remove_before(70)
    processes.start("b")
    ledgers.wait_for_results(jobs + 10, 30)
    losses = [json.loads(line) for line in processes.log("b").splitlines() if "retention-loss" in line]
    assert [loss["postback.records"] for loss in losses] == [30]
