"""Workers join, leave, stop and die under load: every job has exactly one result."""

from __future__ import annotations

import signal
import time

from kernel_fleet import Ledgers, StageProcesses, eventually

JOBS = 6_000


def test_workers_that_join_leave_freeze_and_die_answer_every_job_once(
    ledgers: Ledgers, processes: StageProcesses
) -> None:
    ledgers.submit({"id": number, "ms": 50 + number % 400} for number in range(JOBS))
    processes.window = 60
    processes.start("a", "b")
    time.sleep(4)
    processes.start("c")  # joins
    time.sleep(3)
    processes.send("b", signal.SIGSTOP)  # freezes for longer than its session and its transaction may last
    time.sleep(2)
    processes.kill("a")
    processes.start("a")  # the same replica again
    time.sleep(2)
    eventually(lambda: "partitions-assigned" in processes.log("c"), 60, "the newcomer does not join")
    assert processes.terminate("c") == 0  # leaves
    time.sleep(10)
    processes.send("b", signal.SIGCONT)
    processes.start("d")
    ledgers.wait_for_results(JOBS, 90)
    ledgers.assert_each_exactly_once(JOBS)
    for replica in ("a", "b", "d"):
        assert processes.terminate(replica) == 0
