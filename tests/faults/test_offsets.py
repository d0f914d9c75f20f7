"""Offsets that are wrong: those that records state, though no client writes them, and a coordinator that refuses."""

from __future__ import annotations

import json

from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.faults.link import Link
from tests.record_batches import batch, produce, record


def job(number: int) -> dict[str, int]:
    return {"id": number, "ms": 1}


def test_a_record_that_states_another_offset_hides_no_other_record(ledgers: Ledgers, processes: StageProcesses) -> None:
    """In an earlier version, a stated offset beyond the partition's end kept all later jobs there from starting."""

    def stated(*deltas: int) -> bytes:
        """A batch of jobs with these offsets, relative to the batch's base offset."""
        return batch([record(json.dumps(job(next(numbers))).encode(), offset_delta=delta) for delta in deltas])

    numbers = iter(range(100))
    ledgers.submit([job(next(numbers)) for _ in range(5)], partitions=1)
    processes.start("a")
    ledgers.wait_for_results(5, 60)
    for deltas in ((1,), (1000,), (-1, 10**9), (3, 3)):
        produce(ledgers.kafka.bootstrap_servers, [(ledgers.kafka.topics.requests(), stated(*deltas))])
    ledgers.submit([job(next(numbers)) for _ in range(5)], partitions=1)
    ledgers.wait_for_results(16, 60)
    processes.terminate("a")
    processes.start("b")
    ledgers.submit([job(next(numbers)) for _ in range(5)], partitions=1)
    ledgers.wait_for_results(21, 60)
    ledgers.assert_each_exactly_once(21)


# -- refused by the group's coordinator ----------------------------------------------------------------------------


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
