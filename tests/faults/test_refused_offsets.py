"""The group's coordinator refuses to say where a member's partitions begin."""

from __future__ import annotations

from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.faults.link import Link


def test_partitions_whose_committed_offsets_were_refused_are_read_later(
    ledgers: Ledgers, processes: StageProcesses, link: Link
) -> None:
    """The client gives such partitions up without an end: it asks no second time, and reads nothing."""
    processes.kafka = processes.kafka.model_copy(update={"bootstrap_servers": f"127.0.0.1:{link.port}"})
    link.refused_offsets = 1
    jobs = ledgers.submit({"id": number, "ms": 1} for number in range(40))
    processes.start("a")
    ledgers.wait_for_results(jobs, 60)
    ledgers.assert_each_exactly_once(jobs)
    assert link.refused_offsets == 0
    assert processes.terminate("a") == 0
