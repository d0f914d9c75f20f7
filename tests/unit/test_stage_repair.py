"""The stage's transactions: one at a time, repaired, and with suspects alone."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from typing import Any

import pytest

from telemetry.hand_clock import HandClock
from tests.unit.one_party import OneParty
from tests.unit.stage_rig import (
    BusyLoop,
    Desk,
    Intake,
    Settler,
    bare_stage,
    ended,
    handled,
    offsets_of,
    records,
    reread,
    stage_with,
)
from workers.stage.dispatcher import CRASH_SECONDS, OTHERS_SECONDS, SAY_SECONDS, NothingCompletes
from workers.stage.isolation import DEATHS_IN_A_ROW
from workers.stage.partition import GAP_SECONDS, Partition, Phase
from workers.stage.progress import Progress, Suspect
from workers.stage.record import Output, Record
from workers.stage.runner import Handled
from workers.stage.settler import OUTPUTS_A_HOME, Batch, SettlerState
from workers.stage.source import Coordinator
from workers.stage.stage import Stage
from workers.stage.transactions import (
    FEW_RECORDS,
    LINGER_BYTES,
    LINGER_RECORDS,
    LINGER_SECONDS,
    MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS,
    MOST_SECONDS,
    SHARE,
    GroupCommit,
    Lingering,
)

# -- stage repair ----------------------------------------------------------------------------------------------------
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
    assert (partition.ledger.base, stage.partitions.load.bytes, stage.partitions.load.running) == (3, 0, 0)


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
    anew = stage.partitions.held[lost.id]
    anew.open(Progress(0), 0)
    anew.open_committed = True
    stage.take([Record(*lost.id, offset, b"") for offset in range(2)], [])
    ended(stage, lost, 0, outputs=DONE)
    assert (committed(stage), anew.ledger.taken, stage.partitions.load.running) == ({}, frozenset({0, 1}), 0)


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
    stage.take(records(0), [])
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
    stage.take(records(*range(3)), [])
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
    suspected = stage.partitions.held["requests", 1]
    suspected.open(Progress(0, open=True, suspects={0: Suspect(attempts=1)}), 0)
    suspected.open_committed = True
    stage.dispatcher.isolation.opened(suspected)
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


# -- stage transactions ----------------------------------------------------------------------------------------------
WAITS_ON = (Output("tier", b"", may_linger=True),)


def test_a_batch_that_does_not_come_through_is_tried_smaller_until_it_does() -> None:
    settler = Settler()
    stage, _, partition = stage_with(Intake(), HandClock(), parked=MAX_BATCH_RECORDS, settler=settler)
    stage.transactions.pending = [Handled(partition, record, [], 0.0) for record in records(*range(MAX_BATCH_RECORDS))]
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
    anew = stage.partitions.held[partition.id]
    stage.take(records(*range(2)), [])
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


# -- stage suspects --------------------------------------------------------------------------------------------------
def test_a_record_that_is_not_due_is_no_suspect_and_goes_on_waiting() -> None:
    """A tier is a queue: if a record is not due, no later record has begun."""

    class Later(Desk):
        def due_ms(self, record: Record) -> int | None:
            return 0 if record.offset < 3 else 1 << 60

    stage, _, partition = stage_with(Intake(), HandClock(), pace=Later())
    partition.open(Progress(0, open=True), 4096)
    stage.take(records(*range(10)), [])
    assert offsets_of(stage.dispatcher.isolation.next_cohort(10)) == [0, 1, 2]
    assert stage.dispatcher.due is not None
    assert len(stage.dispatcher.due) == 7


def test_records_after_the_end_of_a_partition_that_was_left_open_are_no_suspects() -> None:
    """The last owner cannot have begun them: they were appended after this process reached the partition's end."""
    stage, _, partition = stage_with(Intake(), HandClock())
    partition.open(Progress(0, open=True), 4096)
    stage.take(records(0, 1, 2), [("requests", 0, 3)])
    stage.take(records(*range(3, 10)), [])
    assert offsets_of(stage.dispatcher.isolation.next_cohort(10)) == [0, 1, 2]
    assert (stage.dispatcher.window.queued, partition.careful_records) == (7, 0)


def regained(stage: Stage, intake: Intake, progress: Progress | None) -> Partition:
    """The partition after it was assigned again, with this committed progress; its first four records are taken."""
    stage.assigned([("requests", 0)])
    intake.progress = progress
    stage.take(records(*range(4)), [])
    return stage.partitions.held["requests", 0]


def committed_suspects(stage: Stage, partition: Partition, *offsets: int) -> Progress:
    """Settle these offsets; return the progress as read back from Kafka."""
    progress = partition.progress(list(offsets))
    partition.settle(list(offsets), progress)
    return Progress.decode(progress.base, progress.encode())


def test_a_partition_that_comes_back_as_this_process_left_it_is_not_suspected() -> None:
    """In an earlier version, a process that had paused for nine seconds tried its backlog 32 records at a time."""
    intake = Intake()
    stage, _, partition = stage_with(intake, HandClock(), parked=4)
    left = committed_suspects(stage, partition, 0, 2)
    stage.lost([partition.id])
    assert left.open
    anew = regained(stage, intake, left)
    assert anew is not partition
    assert (anew.careful_records, stage.dispatcher.window.queued, stage.dispatcher.isolation.idle) == (0, 2, True)


class Unanswered(Settler):
    """A settler whose commits get no answer."""

    resting = False

    def settle(self, batch: Batch) -> None:
        batch.progress = {partition: partition.progress(offsets) for partition, offsets in batch.offsets.items()}
        self.state = SettlerState.SETTLING

    def settled(self) -> Batch | None:
        return None


def test_a_commit_that_came_through_after_the_partition_was_lost_is_this_processs_too() -> None:
    intake, clock = Intake(), HandClock()
    stage, _, partition = stage_with(intake, clock, parked=4, settler=Unanswered())
    stage.dispatch()
    committed_suspects(stage, partition, 0)
    ended(stage, partition, 1)
    expected = partition.progress([1])
    clock.now += MOST_SECONDS
    stage.settle(0)
    stage.lost([partition.id])
    assert regained(stage, intake, Progress.decode(expected.base, expected.encode())).careful_records == 0


@pytest.mark.parametrize("meanwhile", ["another owner settled", "another owner suspected", "first seen"])
def test_a_partition_that_another_owner_left_open_is_suspected_also_by_its_former_owner(meanwhile: str) -> None:
    intake = Intake()
    stage, _, partition = stage_with(intake, HandClock(), parked=4)
    left = committed_suspects(stage, partition, 0)
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
    assert stage.dispatcher.isolation.involves(anew)


def test_a_partition_whose_first_window_was_not_settled_is_suspected_again() -> None:
    """This process settled no record of the partition, so the death of the owner before this process still counts."""
    intake = Intake()
    stage, _ = bare_stage(intake, HandClock())
    found = Progress(0, open=True)
    first = regained(stage, intake, found)
    assert stage.dispatcher.isolation.involves(first)
    stage.lost([first.id])
    assert stage.dispatcher.isolation.involves(regained(stage, intake, found))


def test_first_windows_of_many_partitions_take_no_more_places_than_the_window_has() -> None:
    stage, loop, _ = stage_with(Intake(), HandClock(), pace=Desk(20))
    stage.assigned([("requests", number) for number in range(1, 5)])
    for partition in stage.partitions.held.values():
        partition.open(Progress(0, open=True), 100)
        partition.open_committed = True
    stage.take([Record("requests", number, offset, b"") for number in range(5) for offset in range(50)], [])
    for _ in range(3):
        stage.dispatch()
        if stage.dispatcher.isolation.announced is not None:
            stage.dispatcher.isolation.announced.committed = True
    assert sum(len(batch) for batch, _ in loop.calls) == 20


def died(stage: Stage, loop: BusyLoop) -> list[int]:
    """Dispatch, and let the engine die with all running records; return their offsets."""
    stage.dispatch()
    if stage.dispatcher.isolation.announced is not None:
        stage.dispatcher.isolation.announced.committed = True
        stage.dispatch()
    batch, _ = loop.calls[-1]
    for partition, record in batch:
        stage.transactions.completions.put([Handled(partition, record, None, 0.0)])
    stage.collect()
    return [record.offset for _, record in batch]


def thrice_died(clock: HandClock, behind: list[Record]) -> tuple[Stage, BusyLoop, Partition]:
    """A stage whose first record has died three times, alone, before other records come."""
    stage, loop, partition = stage_with(Intake(), clock, parked=1)
    for _ in range(3):
        assert died(stage, loop) == [0]
    stage.take(behind, [])
    stage.turn()
    return stage, loop, partition


def test_records_that_died_are_judged_together_once_no_record_runs() -> None:
    """Records that still run may be part of the same crash: judged one by one, each would be tried by itself."""
    stage, loop, partition = stage_with(Intake(), HandClock(), parked=12)
    isolation = stage.dispatcher.isolation
    assert stage.dispatch() == 10
    for offset in (0, 2, 3, 5):
        handled(stage, partition, offset, outputs=None)
        stage.collect()
        assert (stage.dispatch(), isolation.idle) == (0, True)
    ended(stage, partition, 1, 4, 6, 7, 8)
    assert (stage.dispatch(), isolation.idle) == (0, True)
    handled(stage, partition, 9, outputs=None)
    stage.collect()
    assert stage.dispatch() == 0
    assert offsets_of(isolation.announced) == [0, 2, 3]
    assert len(loop.calls) == 1
    assert isolation.exclusive


def test_records_that_run_on_after_a_crash_hold_up_the_suspects_for_a_second_only() -> None:
    """A job that fetches pages does not die with its engine, and may take half a minute more."""

    class Fetching(OneParty):
        def assess(self, record: Record) -> None:
            record.party, record.outside = b"", b"" if record.offset > 8 else None

    clock = HandClock()
    stage, loop, partition = stage_with(Intake(), clock, parked=12, sharing=Fetching())
    stage.dispatch()
    (([*batch], _),) = loop.calls
    for _, record in batch[:8]:
        stage.transactions.completions.put([Handled(partition, record, None, 0.0)])
    stage.collect()
    clock.now += CRASH_SECONDS * 2
    assert (stage.dispatch(), stage.dispatcher.isolation.idle) == (0, True), "a job of text may die yet"
    stage.transactions.completions.put([Handled(partition, batch[8][1], None, 0.0)])
    stage.collect()
    clock.now += CRASH_SECONDS / 2
    assert (stage.dispatch(), stage.dispatcher.isolation.idle) == (0, True)
    clock.now += CRASH_SECONDS
    stage.dispatch()
    assert offsets_of(stage.dispatcher.isolation.announced) == [0, 1, 2, 3, 4]


def test_a_stage_in_which_record_after_record_dies_alone_stops_and_says_why() -> None:
    stage, loop, _ = stage_with(Intake(), HandClock(), parked=20)
    tried = []
    while stage.stopping is None:
        tried.append(died(stage, loop))
        stage.turn()
    assert [len(offsets) for offsets in tried].count(1) == DEATHS_IN_A_ROW
    assert isinstance(stage.error, NothingCompletes)
    assert stage.dispatcher.isolation.condemned == []


def test_a_suspect_before_its_last_attempt_waits_ten_seconds_for_others_where_there_are_none() -> None:
    clock = HandClock()
    stage, loop, _ = thrice_died(clock, [])
    calls = len(loop.calls)
    clock.now += OTHERS_SECONDS - 1
    stage.dispatch()
    assert (len(loop.calls), stage.stopping) == (calls, None)
    clock.now += 1
    assert died(stage, loop) == [0]
    stage.turn()
    assert isinstance(stage.error, NothingCompletes)


def test_a_suspect_before_its_last_attempt_holds_up_nothing_and_is_given_up_once_others_completed() -> None:
    stage, loop, partition = thrice_died(HandClock(), records(1, 2))
    assert [record.offset for _, record in loop.calls[-1][0]] == [1, 2]
    ended(stage, partition, 1, 2)
    assert died(stage, loop) == [0]
    stage.turn()
    assert [call[1].offset for call in loop.calls if len(call) == 4] == [0]
    assert stage.error is None


def test_a_record_that_was_given_up_does_not_show_that_the_engine_works() -> None:
    """On a machine whose engine answers nothing, a suspect's last attempt would otherwise condemn it."""
    stage, _, partition = thrice_died(HandClock(), records(1, 2))
    tried = []
    for offset, answered in ((1, False), (2, True)):
        record = Record("requests", 0, offset, b"")
        record.shows_health = answered
        stage.transactions.completions.put([Handled(partition, record, (), 0.0)])
        stage.collect()
        stage.dispatch()
        tried.append(stage.dispatcher.isolation.announced is not None)
    assert tried == [False, True]


def test_no_record_is_begun_beyond_what_the_last_commit_allows_and_the_next_one_follows_at_once() -> None:
    """Each commit limits the number of records in flight, and thereby the number of suspects after a crash."""
    stage, loop, partition = stage_with(Intake(), HandClock(), parked=200, pace=Desk(1 << 30))
    begun = 0
    while begun < 200:
        assert begun == 0 or stage.transactions.compose().offsets == {partition: []}, (
            "nothing is complete; a commit is due"
        )
        committed_suspects(stage, partition)
        limit = partition.confirmed.limit
        stage.dispatch()
        begun = sum(len(batch) for batch, _ in loop.calls)
        assert begun == min(limit, 200)
    assert stage.transactions.compose().offsets == {}


# -- left open -------------------------------------------------------------------------------------------------------
PARTITIONS = 156


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[object, object, object]]:
    """The topic, the partitions and the suspects in each line about partitions that were left open."""
    said = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    ours = [line for line in said if line["action"] == "partition-left-open"]
    return [(line["topic"], line["partitions"], line["suspects"]) for line in ours]


def opened(stage: Stage, topic: str, *numbers: int) -> None:
    """Let the first records of these partitions come, in one round of the stage."""
    stage.take([Record(topic, number, 7, b"") for number in numbers], [])
    stage.dispatch()


def test_one_line_a_minute_for_each_topic_counts_the_partitions_that_were_left_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    intake, clock = Intake(), HandClock()
    intake.progress = Progress(7, open=True)
    stage, _ = bare_stage(intake, clock)
    stage.assigned([(topic, number) for topic in ("a", "b") for number in range(PARTITIONS)])

    opened(stage, "a", 0)
    opened(stage, "b", 0, 1)
    for number in range(1, PARTITIONS):
        opened(stage, "a", number)
    assert lines(caplog) == [("a", 1, 0), ("b", 2, 0)]

    clock.sleep(SAY_SECONDS)
    stage.dispatch()
    stage.dispatch()
    assert lines(caplog)[2:] == [("a", PARTITIONS - 1, 0)]

    clock.sleep(SAY_SECONDS)
    stage.dispatch()
    assert len(lines(caplog)) == 3


# -- coordinator -----------------------------------------------------------------------------------------------------
def statistics(at_seconds: float, **connection: Any) -> str:
    """Statistics in librdkafka's form, with the fields that are read. Without `connection`, no coordinator is known."""
    brokers = {"127.0.0.1:9092/1": {"state": "UP", "rxidle": 0, "waitresp_cnt": 1}}
    if connection:
        brokers["GroupCoordinator"] = connection
    return json.dumps({"ts": round(at_seconds * 1e6), "brokers": brokers})


def up(at_seconds: float, silent_seconds: float, waiting: int) -> str:
    return statistics(at_seconds, state="UP", rxidle=round(silent_seconds * 1e6), waitresp_cnt=waiting)


def reconnecting(at_seconds: float) -> str:
    return statistics(at_seconds, state="APIVERSION_QUERY", rxidle=-1, waitresp_cnt=1)


def silent_after(*texts: str) -> float:
    coordinator = Coordinator()
    for text in texts:
        coordinator.statistics(text)
    return coordinator.silent_seconds


@pytest.mark.parametrize(
    ("texts", "silent_seconds"),
    [
        ([], 0),  # before there are statistics
        ([statistics(100), statistics(112)], 12),  # a coordinator that is never found is silent from the start
        ([up(100, 0, 0), up(110, 9, 1)], 9),  # an answer is owed
        ([up(100, 0, 0), up(112, 12, 0)], 0),  # a group whose heartbeats are rare is not silent between them
        # A new connection on which nothing came does not end the silence, and the first answer does.
        ([up(100, 0, 0), up(102, 2, 1), reconnecting(104), reconnecting(112)], 12),
        ([up(100, 0, 0), reconnecting(112), up(114, 0.5, 0)], 0),
    ],
)
def test_a_coordinator_is_silent_while_it_owes_an_answer_or_is_not_reached(
    texts: list[str], silent_seconds: float
) -> None:
    assert silent_after(*texts) == silent_seconds


def test_no_broker_at_all_is_endless_silence_until_one_answers() -> None:
    coordinator = Coordinator()
    coordinator.statistics(up(100, 0, 0))
    coordinator.away()
    assert coordinator.silent_seconds == math.inf
    coordinator.statistics(reconnecting(102))
    assert coordinator.silent_seconds == math.inf
    coordinator.statistics(up(104, 1, 1))
    assert coordinator.silent_seconds == 1


# -- group commit ----------------------------------------------------------------------------------------------------
def told(took_seconds: float, times: int = 200) -> GroupCommit:
    company = GroupCommit()
    for _ in range(times):
        company.came(took_seconds, now=10.0)
    return company


def test_complete_records_wait_for_others_for_a_small_share_of_their_jobs_time_and_never_long() -> None:
    assert not told(0.0).expects(10.0)
    assert 0.9 * SHARE < told(1.0).seconds <= SHARE
    assert told(600.0).seconds <= MOST_SECONDS
    quick = told(0.001)
    quick.came(60.0, now=10.0)
    assert quick.seconds < MOST_SECONDS / 10, "one slow job among many quick ones makes them wait"
    without_reader = GroupCommit(least_seconds=0.05)
    without_reader.came(0.0, now=10.0)
    assert [without_reader.expects(now) for now in (10.04, 10.06)] == [True, False]


def test_the_wait_is_the_first_records_and_begins_anew_after_a_settle() -> None:
    company = told(1.0)
    company.came(1.0, now=10.0 + SHARE * 2)
    assert not company.expects(10.0 + SHARE * 2)
    company.left()
    assert not company.expects(11.0)
    company.came(1.0, now=12.0)
    assert company.expects(12.0 + SHARE / 2)


def complete(*outputs: Output, value: bytes = b"") -> Handled:
    return Handled(Partition("t", 0, 1, 0.0), Record("t", 0, 0, value), outputs, 0.0)


def test_lingering_records_wait_until_the_first_has_waited_long_enough() -> None:
    lingering, first, second = Lingering(), complete(), complete()
    lingering.add(first, 10.0)
    lingering.add(second, 10.0 + LINGER_SECONDS * 0.9)
    assert lingering.over(10.0 + LINGER_SECONDS * 0.9) == []
    assert lingering.over(10.0 + LINGER_SECONDS) == [first, second]
    assert lingering.over(99.0) == []
    lingering.add(first, 99.0)
    assert lingering.over(99.0) == []


@pytest.mark.parametrize(("most", "value"), [(LINGER_RECORDS, b""), (2, bytes(LINGER_BYTES // 2))])
def test_lingering_records_wait_no_longer_once_they_are_many_or_large(most: int, value: bytes) -> None:
    lingering = Lingering()
    for _ in range(most):
        assert lingering.over(10.0) == []
        lingering.add(complete(value=value), 10.0)
    assert len(lingering.over(10.0)) == most
    lingering.add(complete(value=b"small"), 10.0)
    assert lingering.over(10.0) == []


def test_a_record_lingers_only_where_all_of_its_outputs_may() -> None:
    now, later = Output("now", b""), Output("later", b"", may_linger=True)
    assert complete(later, later).may_linger
    assert not complete(later, now).may_linger
    assert not complete().may_linger


# -- batch -----------------------------------------------------------------------------------------------------------
def batch_of(outputs: int, sources: list[int]) -> Batch:
    """A batch in which each source partition settles one record."""
    offsets = defaultdict(list, {Partition("t", number, 1, 0.0): [7] for number in sources})
    return Batch(offsets, [Output("out", b"x")] * outputs)


def test_a_small_transaction_writes_to_one_partition_another_each_turn() -> None:
    batch = batch_of(3, [5, 2, 9])
    assert [batch.homes(turn) for turn in range(4)] == [[2], [5], [9], [2]]


def test_a_large_transaction_is_spread_but_never_over_more_than_its_sources() -> None:
    batch = batch_of(2 * OUTPUTS_A_HOME, [1, 2, 3, 4])
    assert batch.homes(3) == [4, 1, 2]
    assert sorted(batch_of(100 * OUTPUTS_A_HOME, [1, 2]).homes(0)) == [1, 2]


def test_only_partitions_that_settle_a_record_are_written_to() -> None:
    """A dead worker's open transaction must block readers only of partitions that the worker owned."""
    batch = batch_of(1, [4])
    batch.offsets[Partition("t", 8, 1, 0.0)] = []  # this partition settles no record, but commits its state
    assert {home for turn in range(5) for home in batch.homes(turn)} == {4}
