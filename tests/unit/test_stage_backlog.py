"""The backlog that the owner of a partition reports: records that are not done."""

from __future__ import annotations

import pytest

from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.unit.stage_rig import Intake, stage_with
from workers.stage.intake import Contact, PartitionId
from workers.stage.progress import Progress
from workers.stage.watch import LOOK_SECONDS


class Log(Intake):
    """A partition with ten records."""

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        return 0, 10

    def contact(self) -> Contact:
        return Contact(member=True, silent_seconds=0.0)


@pytest.mark.parametrize(
    ("done", "backlog"),
    [([], 10), (list(range(1, 10)), 1), ([0, 1, 5], 7), (list(range(10)), 0), (list(range(1, 12)), 1)],
)
def test_the_backlog_leaves_out_records_done_behind_a_slow_one(done: list[int], backlog: int) -> None:
    """In an earlier version, the done records behind a slow record were part of the backlog too."""
    clock, metrics = HandClock(), Metrics()
    stage, _, partition = stage_with(Log(), clock, metrics=metrics)
    partition.open(Progress(0), 0)
    for offset in range(max(done, default=-1) + 1):
        partition.ledger.take(offset)
    partition.ledger.settle(done)
    clock.now += LOOK_SECONDS
    stage.watch.look([partition])

    labels = {"topic": "requests", "partition": "0"}
    assert metrics.registry.get_sample_value("postback_backlog_records", labels) == backlog
