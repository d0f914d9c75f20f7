"""Settling of complete records: in batches of bounded size, at once or later, with others or alone."""

from __future__ import annotations

from telemetry.hand_clock import HandClock
from tests.unit.stage_rig import Desk, Intake, Settler, ended, handled, stage_with
from workers.stage.batch import Batch
from workers.stage.group_commit import FEW_RECORDS, LINGER_SECONDS
from workers.stage.partition import Phase
from workers.stage.progress import Suspect
from workers.stage.record import Output, Record
from workers.stage.runner import Handled
from workers.stage.transactions import MAX_BATCH_BYTES, MAX_BATCH_RECORDS

WAITS_ON = (Output("tier", b"", may_linger=True),)


def test_a_batch_that_does_not_come_through_is_tried_smaller_until_it_does() -> None:
    settler = Settler()
    stage, _, partition = stage_with(Intake(), HandClock(), parked=MAX_BATCH_RECORDS, settler=settler)
    records = [Record("requests", 0, offset, b"") for offset in range(MAX_BATCH_RECORDS)]
    stage.transactions.pending = [Handled(partition, record, [], 0.0) for record in records]
    sizes = []
    for settler.failures in (0, 1, 2, 10, 0):
        sizes.append(len(stage.transactions.compose().offsets[partition]))
    assert sizes == [5000, 2500, 1250, 4, 5000]


def test_a_transaction_of_large_results_carries_fewer_of_them_and_one_at_least() -> None:
    settler = Settler()
    stage, _, partition = stage_with(Intake(), HandClock(), parked=300, settler=settler)
    result = Output("results", bytes(MAX_BATCH_BYTES // 16))
    stage.transactions.pending = [Handled(partition, Record("requests", 0, n, b""), [result], 0.0) for n in range(300)]
    sizes = []
    for settler.failures in (0, 1, 4, 10):
        sizes.append(len(stage.transactions.compose().outputs))
    assert sizes == [16, 8, 1, 1]


def test_a_deferred_record_is_settled_later_and_delays_no_other() -> None:
    clock = HandClock()
    stage, _, partition = stage_with(Intake(), clock, parked=4)
    stage.dispatch()
    ended(stage, partition, 0, 2, outputs=WAITS_ON)
    ended(stage, partition, 1)
    assert stage.transactions.compose().offsets == {partition: [1]}
    clock.now += LINGER_SECONDS
    ended(stage, partition, 3)
    assert stage.transactions.compose().offsets == {partition: [1, 3, 0, 2]}


def test_a_suspect_is_settled_at_once_even_if_it_was_only_deferred() -> None:
    stage, _, partition = stage_with(Intake(), HandClock(), parked=1)
    stage.dispatch()
    partition.suspects[0] = Suspect(running=True)
    ended(stage, partition, 0, outputs=WAITS_ON)
    assert stage.transactions.compose().offsets == {partition: [0]}


def test_deferred_records_do_not_delay_a_partition_that_goes() -> None:
    class Noting(Settler):
        seen: tuple[int, ...] = ()

        def listen(self) -> None:
            if partition.phase is Phase.REVOKING and not self.seen:
                handled(stage, partition, 1, outputs=WAITS_ON)
            pending = tuple(completion.record.offset for completion in stage.transactions.pending)
            self.seen = max(self.seen, pending)

    settler = Noting()
    stage, _, partition = stage_with(Intake(), HandClock(), parked=2, settler=settler, drain_seconds=0.01)
    stage.dispatch()
    ended(stage, partition, 0, outputs=WAITS_ON)
    assert stage.transactions.pending == []
    stage.revoked([partition.id])
    assert settler.seen == (0, 1)


def test_lingering_records_are_forgotten_with_their_partition() -> None:
    class Noting(Settler):
        pending = 0

        def listen(self) -> None:
            if partition.phase is Phase.REVOKING:
                self.pending = len(stage.transactions.pending)

    clock, settler = HandClock(), Noting()
    stage, _, partition = stage_with(Intake(), clock, parked=4, settler=settler, drain_seconds=0.01)
    stage.dispatch()
    ended(stage, partition, 0, 1, outputs=WAITS_ON)
    stage.revoked([partition.id])
    assert settler.pending == 0, "the partition was abandoned, and says farewell"
    stage.assigned([partition.id])
    anew = stage.held.partitions[partition.id]
    stage.take([Record("requests", 0, offset, b"") for offset in range(2)], [])
    anew.open_committed = True
    stage.dispatch()
    ended(stage, anew, 0, 1, outputs=WAITS_ON)
    stage.lost([anew.id])
    clock.now += LINGER_SECONDS
    ended(stage, anew)
    assert not stage.transactions.pending


def test_a_transaction_waits_once_for_the_event_loop_to_begin_a_few_new_records_and_not_for_many() -> None:
    class Counting(Settler):
        resting = False
        begun = 0

        def settle(self, batch: Batch) -> None:
            self.begun += 1

    settler = Counting()
    stage, _, partition = stage_with(Intake(), HandClock(), settler=settler, pace=Desk(1 << 30))
    offset = 0

    def begun_beside(new: int) -> int:
        """Return how many transactions are begun after a round with one complete record and this many new records."""
        nonlocal offset
        stage.transactions.complete(Handled(partition, Record("requests", 0, 9_999, b""), (), 0.0), 0.0)
        stage.take([Record("requests", 0, offset + number, b"") for number in range(new)], [])
        offset += new
        stage.turn()
        return settler.begun

    assert (begun_beside(1), stage.patience()) == (0, 0.001)
    assert begun_beside(1) == 1
    assert (begun_beside(FEW_RECORDS), begun_beside(0)) == (1, 2)
    assert begun_beside(FEW_RECORDS + 1) == 3
