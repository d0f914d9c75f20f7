"""Workers join, leave, stop and die under load: every job has exactly one result."""

from __future__ import annotations

import signal
import time

from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.product import eventually

JOBS = 6_000


def test_workers_that_join_leave_freeze_and_die_answer_every_job_once(
    ledgers: Ledgers, processes: StageProcesses
) -> None:
    ledgers.submit({"id": number, "ms": 50 + number % 400} for number in range(JOBS))
    processes.window = 60
    processes.start("a", "b")
    time.sleep(4)
    processes.start("c")  # a third member joins
    time.sleep(3)
    processes.send("b", signal.SIGSTOP)  # b is frozen for longer than its session timeout and its transaction timeout
    time.sleep(2)
    processes.kill("a")
    processes.start("a")  # the killed replica comes back
    time.sleep(2)
    eventually(lambda: "partitions-assigned" in processes.log("c"), 60, "the newcomer does not join")
    assert processes.terminate("c") == 0  # the third member leaves
    time.sleep(10)
    processes.send("b", signal.SIGCONT)
    processes.start("d")
    ledgers.wait_for_results(JOBS, 90)
    ledgers.assert_each_exactly_once(JOBS)
    for replica in ("a", "b", "d"):
        assert processes.terminate(replica) == 0


def test_a_worker_that_was_paused_past_its_session_suspects_nothing_of_its_own(
    ledgers: Ledgers, processes: StageProcesses
) -> None:
    """A worker that was only paused runs the backlog as usual.

    An earlier version ran it in small groups, as after a crash.
    """
    ledgers.submit({"id": number, "ms": 50} for number in range(2_000))
    processes.window = 20
    processes.start("a")
    eventually(lambda: len(ledgers.results()) > 100, 60, "it does not begin")
    processes.send("a", signal.SIGSTOP)
    time.sleep(9)
    processes.send("a", signal.SIGCONT)
    eventually(lambda: "partitions-lost" in processes.log("a"), 60, "the pause was not long enough")
    ledgers.wait_for_results(2_000, 90)
    ledgers.assert_each_exactly_once(2_000)
    assert "partition-left-open" not in processes.log("a")
