"""An EndTxn is applied and its answer is lost: the stage must look up its commit, and not guess.

The members' session outlasts the link's outage. An expelled member would reopen its partitions from the committed
progress and have nothing to look up.
"""

from __future__ import annotations

from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.faults.link import Link

BLACK_SECONDS = 9.0
"""The link's outage: longer than every timeout of the settler."""


def test_a_commit_whose_answer_is_lost_for_longer_than_every_timeout_is_not_made_twice(
    ledgers: Ledgers, processes: StageProcesses, link: Link
) -> None:
    ledgers.set_session(45)
    processes.kafka = processes.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{link.port}"})
    jobs = ledgers.submit({"id": number, "ms": 40} for number in range(800))
    processes.window = 20
    processes.start("a")
    ledgers.wait_for_results(100, 30)
    link.lose_an_answer(BLACK_SECONDS)
    ledgers.wait_for_results(jobs, 90)
    ledgers.assert_each_exactly_once(jobs)
    assert link.lost == 1
    assert "partitions-lost" not in processes.log("a")
    assert processes.terminate("a") == 0
