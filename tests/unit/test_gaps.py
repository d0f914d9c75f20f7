"""Offsets that Kafka skips: all are counted, and those that retention deleted are reported as lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.unit.stage_rig import Intake, stage_with
from workers.stage.intake import PartitionId
from workers.stage.ledger import Ledger
from workers.stage.partition import Partition
from workers.stage.progress import Progress
from workers.stage.record import Record
from workers.stage.stage import Stage


class Trimmed(Intake):
    """A log whose first offset is `low`, in fetches and in answers to queries."""

    def __init__(self, low: int) -> None:
        super().__init__()
        self.low = low
        self.asked = 0

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        self.asked += not cached
        return self.low, 10_000


def opened(intake: Trimmed, progress: Progress) -> tuple[Stage, Partition, Metrics]:
    metrics = Metrics()
    stage, _, partition = stage_with(intake, HandClock(), metrics=metrics)
    partition.open(progress, 0)
    return stage, partition, metrics


def take(stage: Stage, *offsets: int) -> None:
    stage.take([Record("requests", 0, offset, b"") for offset in offsets], [])


def counted(metrics: Metrics) -> tuple[float | None, float | None]:
    """The number of skipped offsets, and the number of lost offsets."""
    value = metrics.registry.get_sample_value
    return value("postback_gap_offsets_total"), value("postback_retention_loss_total")


def test_a_loss_of_a_few_records_in_the_middle_of_work_is_counted_without_a_question() -> None:
    intake = Trimmed(0)
    stage, _, metrics = opened(intake, Progress(0))
    take(stage, 0, 1)
    intake.low = 7
    take(stage, 7, 8)
    assert counted(metrics) == (5, 5)
    assert intake.asked == 0


def test_records_removed_before_the_first_commit_are_lost_too() -> None:
    stage, _, metrics = opened(Trimmed(30), Progress(0))
    take(stage, 30)
    assert counted(metrics) == (30, 30)


def test_a_loss_with_no_record_after_it_yet_is_counted_at_the_end_of_the_partition() -> None:
    stage, partition, metrics = opened(Trimmed(50), Progress(20))
    stage.take([], [("requests", 0, 50)])
    assert counted(metrics) == (30, 30)
    stage.take([], [("requests", 0, 50)])
    assert (counted(metrics), partition.ledger.base) == ((30, 30), 50)


def test_markers_are_gaps_and_no_loss_although_the_logs_start_moves_over_done_records() -> None:
    intake = Trimmed(0)
    stage, _, metrics = opened(intake, Progress(0))
    take(stage, 0, 2, 4)
    stage.take([], [("requests", 0, 6)])
    intake.low = 4
    take(stage, 6, 8)
    assert counted(metrics) == (4, 0)


def test_records_that_an_earlier_owner_had_done_are_not_lost() -> None:
    stage, _, metrics = opened(Trimmed(30), Progress(10, 0b111_1111_0000))
    take(stage, 30)
    assert counted(metrics) == (20, 13)


@given(st.integers(0, 20), st.sets(st.integers(0, 40)), st.lists(st.integers(0, 40), max_size=3), st.integers(0, 60))
def test_records_that_are_not_done_are_counted_as_plain_sets_count_them(
    base: int, done: set[int], seen: list[int], before: int
) -> None:
    ledger = Ledger(Progress(*Ledger(Progress(base)).after(done)))
    for offset in sorted(seen):
        ledger.take(offset)
    unseen = range(ledger.next_offset, before)
    assert ledger.undone_before(before) == sum(not ledger.is_done(offset) for offset in unseen)


def test_a_gap_of_any_length_is_counted_at_once() -> None:
    assert Ledger(Progress(5, 0b110)).undone_before(10**15) == 10**15 - 5 - 2
