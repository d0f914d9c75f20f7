"""Flow under obstacles: a rebalance stops only the partitions that move, and lost records stop nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain, count, islice
from pathlib import Path

from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.product import eventually


def test_a_worker_that_gives_partitions_away_is_kept_busy_by_those_it_keeps(
    ledgers: Ledgers, processes: StageProcesses, tmp_path: Path
) -> None:
    """Each partition's first job waits for the test's file, so revoked partitions cannot finish draining earlier."""
    over = tmp_path / "over"
    held = ({"id": n, "ms": 0, "until": str(over)} for n in range(4))
    numbers = count(4)

    def more(amount: int) -> Iterator[dict[str, object]]:
        return ({"id": number, "ms": 400} for number in islice(numbers, amount))

    jobs = ledgers.submit(chain(held, more(396)))
    processes.window, processes.drain_seconds = 20, 120
    processes.start("a")
    ledgers.wait_for_results(40, 60)
    processes.start("b")
    before = Counter[int]()

    def two_stand_still_while_two_go_on() -> bool:
        nonlocal before, jobs
        results = ledgers.results()
        if jobs - len(results) < 200:  # with too few unanswered jobs, all partitions would stand still
            jobs += ledgers.submit(more(200))
        now = Counter(int(job) % 4 for job in results)
        grown = sorted(now[partition] - before[partition] for partition in range(4))
        if grown[1] > 0:
            before = now  # compare again later, since a revoked partition gets results until it is drained
        return grown[1] == 0 and grown[2] >= 15

    eventually(two_stand_still_while_two_go_on, 90, "the partitions that stay stand still while the others are drained")
    assert "partitions-revoked" not in processes.log("a")
    over.touch()
    eventually(lambda: "partitions-revoked" in processes.log("a"), 60, "nothing is given to the newcomer")
    ledgers.wait_for_results(jobs, 120)
    ledgers.assert_each_exactly_once(jobs)


def test_records_that_retention_removed_are_reported_and_the_rest_is_handled(
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
