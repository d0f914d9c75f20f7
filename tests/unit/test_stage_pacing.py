"""Records that wait until they are due: their wait, and their order among others."""

from __future__ import annotations

import pytest

from telemetry.hand_clock import HandClock
from tests.unit.stage_rig import Desk, Intake, stage_with
from workers.stage.fetching import STALL_SECONDS
from workers.stage.pacing import LOOK_AGAIN_SECONDS
from workers.stage.parking import AHEAD_RECORDS
from workers.stage.record import Record
from workers.stage.stage import IDLE_SECONDS
from workers.stage.window import Limits


def test_a_stage_in_which_everything_waits_for_its_time_looks_no_more_often_than_an_idle_one() -> None:
    pace = Desk()
    pace.due_at_ms = 1 << 60
    clock = HandClock()
    stage, loop, partition = stage_with(Intake(), clock, parked=5, pace=pace)
    stage.dispatch()
    stage.regulate()
    assert (loop.calls, partition.parked, stage.patience()) == ([], 5, IDLE_SECONDS)
    pace.due_at_ms = 0  # the records are due now, as if the wall clock had been set forward
    clock.now += LOOK_AGAIN_SECONDS
    stage.dispatch()
    assert [len(batch) for batch, _ in loop.calls] == [5]


class Tier(Desk):
    """A pace by which each record is due five seconds after it was appended."""

    def due_ms(self, record: Record) -> int | None:
        return record.timestamp_ms + 5_000


def appended(offset: int, at: float) -> Record:
    return Record("requests", 0, offset, b"", timestamp_ms=round(at * 1000))


def test_records_of_a_tier_are_fetched_once() -> None:
    """Each record waits five seconds and ten come each second, so about fifty wait."""
    clock, intake = HandClock(), Intake()
    stage, loop, partition = stage_with(intake, clock, pace=Tier(1 << 30))
    for offset in range(300):
        clock.now += 0.1
        stage.take([appended(offset, clock.now)], [])
        stage.dispatch()
        stage.regulate()
    assert (intake.paused, partition.ledger.next_offset) == ([], 300)
    sent = [record.offset for batch, _ in loop.calls for _, record in batch]
    assert sent == list(range(len(sent)))
    assert abs(partition.parked - 50) <= 1


def test_records_that_do_not_fit_are_fetched_a_few_times_and_all_go_in_order() -> None:
    clock, intake = HandClock(), Intake()
    stage, loop, partition = stage_with(intake, clock, pace=Tier(1 << 30))
    # The window gets room for all records, because nothing is settled here.
    stage.dispatching.window.limits = Limits(records=1 << 30)
    log = [appended(offset, 100.0 + offset / 100) for offset in range(4_000)]
    position, fetched = 0, 0
    while partition.parked or position < len(log):
        clock.now += 0.1
        if not partition.paused:
            came = log[position : position + 1_000]
            position, fetched = position + len(came), fetched + len(came)
            stage.take(came, [])
        stage.dispatch()
        stage.regulate()
        if intake.resumed:
            *_, sought = intake.resumed.pop()
            position = position if sought is None else sought
    assert [record.offset for batch, _ in loop.calls for _, record in batch] == list(range(len(log)))
    assert fetched < 5 * len(log)


@pytest.mark.parametrize("resumed", [False, True])
def test_returned_records_are_fetched_again_although_the_partition_looks_stalled(resumed: bool) -> None:
    """In an earlier version, returned records were not fetched again, and the partition stalled for this process."""
    clock, intake = HandClock(), Intake()
    stage, _, partition = stage_with(intake, clock, pace=Tier(1 << 30))
    # The window gets room for all records, because nothing is settled here.
    stage.dispatching.window.limits = Limits(records=1 << 30)
    count = 2 * AHEAD_RECORDS - 24
    stage.take([appended(offset, 100.0 + offset / 1000) for offset in range(count)], [("requests", 0, count)])
    stage.dispatch()
    if resumed:
        stage.regulate()
        clock.now += 5.0 + (AHEAD_RECORDS - 112) / 1000
        stage.dispatch()
        stage.regulate()
        assert (intake.resumed, partition.parked, partition.paused) == ([("requests", 0, AHEAD_RECORDS)], 111, False)
    clock.now += STALL_SECONDS
    for _ in range(2):
        stage.regulate()
    assert intake.paused == [partition.id] * (1 + resumed)
    assert [offset for *_, offset in intake.resumed] == [AHEAD_RECORDS] * (2 * resumed)
    assert partition.rewind_to == (None if resumed else AHEAD_RECORDS)
