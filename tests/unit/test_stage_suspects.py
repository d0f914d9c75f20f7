"""Records that a stage suspects after a death, and the fate of the suspects."""

from __future__ import annotations

import pytest

from telemetry.hand_clock import HandClock
from tests.unit.stage_rig import BusyLoop, Desk, Intake, bare_stage, ended, stage_with
from workers.stage.dispatching import OTHERS_SECONDS
from workers.stage.errors import NothingCompletes
from workers.stage.partition import Partition
from workers.stage.progress import Progress, Suspect
from workers.stage.record import Record
from workers.stage.runner import Handled
from workers.stage.stage import Stage


def test_a_record_that_is_not_due_is_no_suspect_and_goes_on_waiting() -> None:
    """A tier is a queue: if a record is not due, no later record has begun."""

    class Later(Desk):
        def due_ms(self, record: Record) -> int | None:
            return 0 if record.offset < 3 else 1 << 60

    stage, _, partition = stage_with(Intake(), HandClock(), pace=Later())
    partition.open(Progress(0, open=True), 4096)
    stage.take([Record("requests", 0, offset, b"") for offset in range(10)], [])
    cohort = stage.dispatching.isolation.next_cohort(10)
    assert cohort is not None
    assert [record.offset for _, record in cohort.members] == [0, 1, 2]
    assert partition.parked == 7


def regained(stage: Stage, intake: Intake, progress: Progress | None) -> Partition:
    """The partition after it was assigned again, with this committed progress; its first four records are taken."""
    stage.assigned([("requests", 0)])
    intake.progress = progress
    stage.take([Record("requests", 0, offset, b"") for offset in range(4)], [])
    return stage.held.partitions["requests", 0]


def committed(stage: Stage, partition: Partition, *offsets: int) -> Progress:
    """Settle these offsets; return the progress as read back from Kafka."""
    progress = partition.progress(list(offsets))
    partition.settle(list(offsets), progress)
    return Progress.decode(progress.base, progress.encode())


def test_a_partition_that_comes_back_as_this_process_left_it_is_not_suspected() -> None:
    """In an earlier version, a process that had paused for nine seconds tried its backlog 32 records at a time."""
    intake = Intake()
    stage, _, partition = stage_with(intake, HandClock(), parked=4)
    left = committed(stage, partition, 0, 2)
    stage.lost([partition.id])
    assert left.open
    anew = regained(stage, intake, left)
    assert anew is not partition
    assert (anew.careful_records, anew.parked, stage.dispatching.isolation.idle) == (0, 2, True)


def test_a_commit_that_came_through_after_the_partition_was_lost_is_this_processs_too() -> None:
    intake = Intake()
    stage, _, partition = stage_with(intake, HandClock(), parked=4)
    committed(stage, partition, 0)
    partition.sent = partition.progress([1])
    stage.lost([partition.id])
    sent = Progress.decode(partition.sent.base, partition.sent.encode())
    assert regained(stage, intake, sent).careful_records == 0


@pytest.mark.parametrize("meanwhile", ["another owner settled", "another owner suspected", "first seen"])
def test_a_partition_that_another_owner_left_open_is_suspected_also_by_its_former_owner(meanwhile: str) -> None:
    intake = Intake()
    stage, _, partition = stage_with(intake, HandClock(), parked=4)
    left = committed(stage, partition, 0)
    if meanwhile != "first seen":
        stage.lost([partition.id])
    else:
        stage, _ = bare_stage(intake, HandClock())
    found = {
        "another owner settled": Progress(2, open=True),
        "another owner suspected": Progress(left.base, left.done, open=True, suspects={1: Suspect(running=True)}),
        "first seen": left,
    }[meanwhile]
    anew = regained(stage, intake, found)
    assert stage.dispatching.isolation.involves(anew)


def test_a_partition_whose_first_window_was_not_settled_is_suspected_again() -> None:
    """This process settled no record of the partition, so the death of the owner before this process still counts."""
    intake = Intake()
    stage, _ = bare_stage(intake, HandClock())
    found = Progress(0, open=True)
    first = regained(stage, intake, found)
    assert stage.dispatching.isolation.involves(first)
    stage.lost([first.id])
    assert stage.dispatching.isolation.involves(regained(stage, intake, found))


def test_first_windows_of_many_partitions_take_no_more_places_than_the_window_has() -> None:
    stage, loop, _ = stage_with(Intake(), HandClock(), pace=Desk(20))
    stage.assigned([("requests", number) for number in range(1, 5)])
    for partition in stage.held.partitions.values():
        partition.open(Progress(0, open=True), 100)
        partition.open_committed = True
    stage.take([Record("requests", number, offset, b"") for number in range(5) for offset in range(50)], [])
    for _ in range(3):
        stage.dispatch()
        if stage.dispatching.isolation.announced is not None:
            stage.dispatching.isolation.announced.committed = True
    assert sum(len(batch) for batch, _ in loop.calls) == 20


def died(stage: Stage, loop: BusyLoop) -> list[int]:
    """Dispatch, and let the engine die with all running records; return their offsets."""
    stage.dispatch()
    if stage.dispatching.isolation.announced is not None:
        stage.dispatching.isolation.announced.committed = True
        stage.dispatch()
    batch, _ = loop.calls[-1]
    for partition, record in batch:
        stage.transactions.completions.put(Handled(partition, record, None, 0.0))
    stage.collect()
    return [record.offset for _, record in batch]


def test_a_stage_in_which_record_after_record_dies_alone_stops_and_says_why() -> None:
    stage, loop, _ = stage_with(Intake(), HandClock(), parked=20)
    tried = []
    while stage.stopping is None:
        tried.append(died(stage, loop))
        stage.turn()
    assert [len(offsets) for offsets in tried[-4:]] == [1] * 4
    assert isinstance(stage.error, NothingCompletes)
    assert stage.dispatching.isolation.condemned == []


def test_a_suspect_before_its_last_attempt_waits_ten_seconds_for_others_where_there_are_none() -> None:
    clock = HandClock()
    stage, loop, _ = stage_with(Intake(), clock, parked=1)
    for _ in range(3):
        assert died(stage, loop) == [0]
    stage.turn()
    calls = len(loop.calls)
    clock.now += OTHERS_SECONDS - 1
    stage.dispatch()
    assert (len(loop.calls), stage.stopping) == (calls, None)
    clock.now += 1
    assert died(stage, loop) == [0]
    stage.turn()
    assert isinstance(stage.error, NothingCompletes)


def test_a_suspect_before_its_last_attempt_holds_up_nothing_and_is_given_up_once_others_completed() -> None:
    stage, loop, partition = stage_with(Intake(), HandClock(), parked=1)
    for _ in range(3):
        assert died(stage, loop) == [0]
    stage.take([Record("requests", 0, offset, b"") for offset in (1, 2)], [])
    stage.turn()
    assert [record.offset for _, record in loop.calls[-1][0]] == [1, 2]
    ended(stage, partition, 1, 2)
    assert died(stage, loop) == [0]
    stage.turn()
    assert [call[1].offset for call in loop.calls if len(call) == 4] == [0]
    assert stage.error is None


def test_no_record_is_begun_beyond_what_the_last_commit_allows_and_the_next_one_follows_at_once() -> None:
    """Each commit limits the number of records in flight, and thereby the number of suspects after a crash."""
    stage, loop, partition = stage_with(Intake(), HandClock(), parked=200, pace=Desk(1 << 30))
    begun = 0
    while begun < 200:
        assert begun == 0 or stage.transactions.compose().offsets == {partition: []}, (
            "nothing is complete; a commit is due"
        )
        committed(stage, partition)
        limit = partition.confirmed.limit
        stage.dispatch()
        begun = sum(len(batch) for batch, _ in loop.calls)
        assert begun == min(limit, 200)
    assert stage.transactions.compose().offsets == {}
