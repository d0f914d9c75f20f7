"""Records that state offsets beyond their partition's end, in topics whose broker accepts them."""

from __future__ import annotations

import json

import pytest

from tests.faults.kernel_fleet import Ledgers, StageProcesses
from tests.record_batches import batch, produce, record


@pytest.fixture(scope="module")
def topic_config() -> dict[str, str]:
    """The topics are like those of other tools: the broker stores batches unchanged."""
    return {"compression.type": "producer"}


def test_no_other_record_is_lost_and_nothing_past_the_end_is_committed(
    ledgers: Ledgers, processes: StageProcesses
) -> None:
    def submit(first: int) -> None:
        ledgers.submit([{"id": number, "ms": 1} for number in range(first, first + 5)], partitions=1)

    def state(*deltas: int) -> None:
        """Write a batch of records with these offsets, relative to the batch's base offset."""
        records = [record(json.dumps({"id": -1, "ms": 1}).encode(), offset_delta=delta) for delta in deltas]
        produce(ledgers.kafka.bootstrap_servers, [(ledgers.kafka.topics.requests(), batch(records))])

    submit(0)
    state(10**9)
    submit(5)
    processes.start("a")
    ledgers.wait_for_results(10, 60)
    state(10**6, 10**9)
    submit(10)
    state(10**9)
    ledgers.wait_for_results(15, 60)
    processes.terminate("a")
    processes.start("b")
    submit(15)
    ledgers.wait_for_results(20, 60)
    ledgers.assert_each_exactly_once(20)
    assert "offset-behind-end" in processes.log("a")
