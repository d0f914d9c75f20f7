"""Work whose commit is uncertain, whose partition is revoked, or which may kill its worker."""

from __future__ import annotations

import pytest

from telemetry.hand_clock import HandClock
from tests.unit.stage_rig import Intake, Settler, ended, reread, stage_with
from workers.stage.partition import GAP_SECONDS, Partition, Phase
from workers.stage.progress import Progress, Suspect
from workers.stage.record import Output, Record
from workers.stage.stage import Stage

DONE = (Output("results", b"done"),)


def committed(stage: Stage) -> dict[Partition, list[int]]:
    """Compose and commit the next batch; return the offsets that it settled."""
    batch = stage.transactions.compose()
    batch.progress = {partition: partition.progress(offsets) for partition, offsets in batch.offsets.items()}
    stage.transactions.apply(batch)
    return dict(batch.offsets)


def test_records_whose_commit_came_through_unnoticed_are_not_settled_again() -> None:
    """The broker applied the transaction and its answer was lost: settling again would write the outputs twice."""
    intake, settler = Intake(), Settler()
    stage, _, partition = stage_with(intake, HandClock(), parked=3, settler=settler)
    stage.dispatch()
    ended(stage, partition, 0, 2, outputs=DONE)
    intake.progress = Progress(1, 0b10, open=True)
    reread(stage, settler)
    assert committed(stage) == {}
    ended(stage, partition, 1, outputs=DONE)
    assert committed(stage) == {partition: [1]}
    assert (partition.ledger.base, stage.held.load.bytes, stage.held.load.running) == (3, 0, 0)


def test_work_that_ends_after_its_partition_was_lost_is_not_settled_nor_counted_for_the_next_assignment() -> None:
    clock = HandClock()
    stage, _, lost = stage_with(Intake(), clock, parked=2)
    stage.dispatch()
    ended(stage, lost, 0, outputs=DONE)
    stage.lost([lost.id])
    assert clock.now == 100.0, "nothing of a lost partition is awaited"
    ended(stage, lost, 1, outputs=DONE)
    assert committed(stage) == {}
    stage.assigned([lost.id])
    anew = stage.held.partitions[lost.id]
    anew.open(Progress(0), 0)
    anew.open_committed = True
    stage.take([Record(*lost.id, offset, b"") for offset in range(2)], [])
    ended(stage, lost, 0, outputs=DONE)
    assert (committed(stage), anew.ledger.taken, stage.held.load.running) == ({}, frozenset({0, 1}), 0)


def test_a_gap_at_the_end_of_a_partition_is_committed_although_no_record_is_complete() -> None:
    """Without this commit, the lag of a partition whose last offsets are end markers would never be 0."""
    clock = HandClock()
    stage, _, partition = stage_with(Intake(), clock)
    stage.take([], [("requests", 0, 5)])
    assert committed(stage) == {}
    clock.now += GAP_SECONDS
    assert committed(stage) == {partition: []}
    assert (partition.confirmed.base, committed(stage)) == (5, {})


def test_nothing_is_dispatched_before_the_open_mark_is_committed() -> None:
    """Without the mark, the next owner would not suspect a record of the first window that killed the worker."""
    stage, loop, partition = stage_with(Intake(), HandClock())
    partition.open_committed = False
    stage.take([Record("requests", 0, 0, b"")], [])
    stage.dispatch()
    assert loop.calls == []
    assert committed(stage) == {partition: []}
    assert partition.confirmed.open
    stage.dispatch()
    assert [len(batch) for batch, _ in loop.calls] == [1]


def test_a_cleanly_revoked_partition_is_committed_without_the_open_mark() -> None:
    class Committing(Settler):
        batches: tuple[dict[Partition, list[int]], ...] = ()

        def listen(self) -> None:
            assert partition.phase is Phase.REVOKING
            self.batches += (committed(stage),)

    settler = Committing()
    stage, _, partition = stage_with(Intake(), HandClock(), parked=2, settler=settler)
    stage.revoked([partition.id])
    assert settler.batches == ({partition: []},)
    assert (partition.confirmed.open, partition.open_committed) == (False, False)


def test_suspects_run_only_once_their_suspicion_is_committed() -> None:
    stage, loop, partition = stage_with(Intake(), HandClock())
    partition.open(Progress(0, open=True), 10)
    stage.take([Record("requests", 0, offset, b"") for offset in range(3)], [])
    for _ in range(2):
        stage.dispatch()
    assert loop.calls == []
    assert committed(stage) == {partition: []}
    assert partition.confirmed.running == (0, 1, 2)
    stage.dispatch()
    assert [[record.offset for _, record in batch] for batch, _ in loop.calls] == [[0, 1, 2]]


def test_a_suspect_that_has_killed_alone_waits_until_nothing_else_runs_in_its_process() -> None:
    stage, loop, busy = stage_with(Intake(), HandClock(), parked=1)
    stage.dispatch()
    stage.assigned([("requests", 1)])
    suspected = stage.held.partitions["requests", 1]
    suspected.open(Progress(0, open=True, suspects={0: Suspect(attempts=1)}), 0)
    suspected.open_committed = True
    stage.dispatching.isolation.opened(suspected)
    stage.take([Record("requests", 1, 0, b"")], [])
    stage.dispatch()
    committed(stage)
    stage.dispatch()
    assert len(loop.calls) == 1, "it runs beside another record"
    ended(stage, busy, 0, outputs=DONE)
    stage.dispatch()
    assert [[partition for partition, _ in batch] for batch, _ in loop.calls] == [[busy], [suspected]]
    assert suspected.confirmed.alone


@pytest.mark.parametrize("answered", [False, True])
def test_dispatched_records_are_awaited_before_a_partition_goes_to_another_process(answered: bool) -> None:
    """Without the wait, each rebalance would cancel a window of records, and the next owner would repeat them."""

    class Answering(Settler):
        def listen(self) -> None:
            if answered and clock.now > 110.0 and partition.running:
                ended(stage, partition, 0, outputs=DONE)
            committed(stage)

    clock = HandClock()
    stage, loop, partition = stage_with(Intake(), clock, parked=1, settler=Answering(), drain_seconds=20.0)
    stage.dispatch()
    stage.revoked([partition.id])
    assert partition.confirmed.base == (1 if answered else 0)
    assert not partition.confirmed.open
    assert clock.now < (112.0 if answered else 126.0)
    assert (partition,) in loop.calls  # records that still run are cancelled
