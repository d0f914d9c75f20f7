"""The rounds of the Kafka thread, one step at a time: no Kafka, and an event loop that never gets its turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from telemetry.clock import Deadline
from telemetry.metrics import Metrics
from tests.clocks import HandClock
from workers.stage.group_commit import FEW_RECORDS, LINGER_SECONDS
from workers.stage.intake import Committed, PartitionId
from workers.stage.parking import AHEAD_RECORDS
from workers.stage.partition import Partition, Phase
from workers.stage.progress import Progress, Suspect
from workers.stage.record import Failure, Headers, Output, Record
from workers.stage.runner import Handled
from workers.stage.settle import Batch, SettlerState
from workers.stage.stage import (
    IDLE_SECONDS,
    LOOK_AGAIN_SECONDS,
    MAX_BATCH_BYTES,
    MAX_BATCH_RECORDS,
    OTHERS_SECONDS,
    NothingCompletes,
    Stage,
    StageSettings,
)
from workers.stage.watch import STALL_SECONDS
from workers.stage.window import Limits


class Handler:
    """Is never called."""

    async def handle(self, record: Record) -> Sequence[Output]:
        raise AssertionError(record)

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        raise AssertionError(failure)


class Desk:
    """A pace whose handler has begun nothing, so that it has room for as many as ever; of which nothing is early."""

    def __init__(self, room: int = 10) -> None:
        self._room = room
        self.due_at_ms: int | None = None

    def room(self) -> int:
        return self._room

    def due_ms(self, record: Record) -> int | None:
        return self.due_at_ms

    def paces(self, topic: str) -> bool:
        return topic == "tier"


class Intake:
    """Does what it is told, and knows of no end."""

    def __init__(self) -> None:
        self.paused: list[PartitionId] = []
        self.resumed: list[tuple[str, int, int | None]] = []
        self.away = False
        self.progress: Progress | None = None

    def flow(self, pause: Sequence[PartitionId], resume: Sequence[tuple[str, int, int | None]]) -> bool:
        self.paused += pause
        self.resumed += resume
        return True

    def committed(self, partitions: Sequence[PartitionId], timeout_seconds: float) -> Committed:
        if self.away:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return dict.fromkeys(partitions, self.progress)

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        return None


class Settler:
    """Has nothing to do."""

    state = SettlerState.READY
    resting = True
    failures = 0
    offsets_swept = True

    def listen(self) -> None:
        """Has heard nothing."""

    def sweep_again(self) -> None:
        """Has it noted."""
        self.state = SettlerState.SWEEPING

    def carries(self, partition: Partition) -> bool:
        return False

    def reread(self) -> None:
        """Is told that all is well."""
        self.state = SettlerState.READY


class BusyLoop:
    """Takes calls and makes none."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def call_soon_threadsafe(self, call: Callable[..., None], *args: Any) -> None:
        self.calls.append(args)


def stage_with(
    intake: Intake, clock: HandClock, parked: int = 0, settler: Any = None, pace: Desk | None = None, **settings: float
) -> tuple[Stage, BusyLoop, Partition]:
    """A stage that has one open partition, which is fetched from."""
    loop: Any = BusyLoop()
    source: Any = intake
    sink: Any = settler or Settler()
    stage = Stage(StageSettings("requests", **settings), Handler(), source, sink, clock, Metrics(), pace or Desk())
    stage._loop = loop
    stage.assigned([("requests", 0)])
    (partition,) = stage._partitions.values()
    partition.open(Progress(0), 0)
    partition.open_committed, partition.paused = True, False
    stage._take([Record("requests", 0, offset, b"") for offset in range(parked)], [])
    return stage, loop, partition


WAITS_ON = (Output("tier", b"", may_linger=True),)


def ended(stage: Stage, partition: Partition, *offsets: int, outputs: Sequence[Output] = ()) -> None:
    """The handler has returned for these, and the stage has heard of it."""
    for offset in offsets:
        stage._completions.put(Handled(partition, Record("requests", 0, offset, b""), outputs, 0.0))
    stage._collect()


def test_a_partition_is_paced_where_its_topic_is() -> None:
    stage, _, _ = stage_with(Intake(), HandClock())
    stage.assigned([("tier", 0)])
    assert [partition.paced for partition in stage._partitions.values()] == [False, True]


def test_a_pace_or_a_sharing_that_raises_at_a_record_ends_nothing_and_lets_the_record_run() -> None:
    class Raising(Desk):
        later_share = 0.5

        def due_ms(self, record: Record) -> int | None:
            raise KeyError(record.offset)

        def party(self, headers: Headers | None) -> bytes | None:
            raise OverflowError(headers)

        def is_later(self, topic: str) -> bool:
            return False

        def defer(self, record: Record) -> Sequence[Output]:
            raise AssertionError(record)

    for shared in (False, True):
        stage, loop, _ = stage_with(Intake(), HandClock(), pace=Raising())
        stage._sharing = Raising() if shared else None
        stage._take([Record("requests", 0, 0, b"")], [])
        stage._dispatch()
        (([(_, record)], _),) = loop.calls
        assert record.offset == 0
        assert stage._metrics.handler_defects.labels("party" if shared else "due_ms")._value.get() >= 1


def test_no_more_is_handed_over_than_there_is_room_for_while_the_event_loop_is_busy() -> None:
    stage, loop, _ = stage_with(Intake(), HandClock(), parked=100)
    for _ in range(5):
        stage._dispatch()
    assert sum(len(batch) for batch, _ in loop.calls) == 10


def test_a_partition_that_was_paused_for_long_is_not_taken_for_stalled_once_it_is_resumed() -> None:
    intake, clock = Intake(), HandClock()
    stage, _, partition = stage_with(intake, clock)
    partition.paused = True
    clock.now += 60.0
    stage._regulate()
    assert not partition.paused
    clock.now += 1.0
    stage._regulate()
    assert (intake.paused, partition.paused) == ([], False)


def test_a_long_drain_does_not_look_like_a_thread_that_hangs() -> None:
    clock = HandClock()
    stage, _, _ = stage_with(Intake(), clock)
    clock.now += 100.0
    assert not stage.watch.alive
    stage._turn()
    assert stage.watch.alive


def test_a_batch_that_does_not_come_through_is_tried_smaller_until_it_does() -> None:
    settler = Settler()
    stage, _, partition = stage_with(Intake(), HandClock(), parked=MAX_BATCH_RECORDS, settler=settler)
    records = [Record("requests", 0, offset, b"") for offset in range(MAX_BATCH_RECORDS)]
    stage._pending = [Handled(partition, record, [], 0.0) for record in records]
    sizes = []
    for settler.failures in (0, 1, 2, 10, 0):
        sizes.append(len(stage._compose().offsets[partition]))
    assert sizes == [5000, 2500, 1250, 4, 5000]


def test_a_transaction_of_large_results_carries_fewer_of_them_and_one_at_least() -> None:
    settler = Settler()
    stage, _, partition = stage_with(Intake(), HandClock(), parked=300, settler=settler)
    result = Output("results", bytes(MAX_BATCH_BYTES // 16))
    stage._pending = [Handled(partition, Record("requests", 0, n, b""), [result], 0.0) for n in range(300)]
    sizes = []
    for settler.failures in (0, 1, 4, 10):
        sizes.append(len(stage._compose().outputs))
    assert sizes == [16, 8, 1, 1]


def test_what_cannot_be_settled_holds_back_what_would_only_be_lost_with_it() -> None:
    stage, loop, partition = stage_with(Intake(), HandClock(), parked=3_000, pace=Desk(1 << 30))
    window = stage._window.limits.records
    for start in (0, window, 2 * window):  # each time the handler is quick, and nothing is settled
        stage._dispatch()
        ended(stage, partition, *range(start, start + stage._window.running))
    assert sum(len(batch) for batch, _ in loop.calls) == 2 * window
    stage._pending = stage._pending[:window]
    stage._dispatch()
    assert stage._window.running == 3_000 - 2 * window


def test_what_only_waits_on_is_settled_later_and_delays_nothing_else() -> None:
    clock = HandClock()
    stage, _, partition = stage_with(Intake(), clock, parked=4)
    stage._dispatch()
    ended(stage, partition, 0, 2, outputs=WAITS_ON)
    ended(stage, partition, 1)
    assert stage._compose().offsets == {partition: [1]}
    clock.now += LINGER_SECONDS
    ended(stage, partition, 3)
    assert stage._compose().offsets == {partition: [1, 3, 0, 2]}


def test_a_suspect_is_settled_at_once_also_where_it_only_waits_on() -> None:
    stage, _, partition = stage_with(Intake(), HandClock(), parked=1)
    stage._dispatch()
    partition.suspects[0] = Suspect(running=True)
    ended(stage, partition, 0, outputs=WAITS_ON)
    assert stage._compose().offsets == {partition: [0]}


def test_a_partition_that_goes_is_held_up_by_nothing_that_only_waits_on() -> None:
    class Noting(Settler):
        seen: tuple[int, ...] = ()

        def listen(self) -> None:
            self.seen = max(self.seen, tuple(completion.record.offset for completion in stage._pending))

    settler = Noting()
    stage, _, partition = stage_with(Intake(), HandClock(), parked=2, settler=settler)
    stage._dispatch()
    ended(stage, partition, 0, outputs=WAITS_ON)
    stage._close(partition)
    ended(stage, partition, 1, outputs=WAITS_ON)
    assert [completion.record.offset for completion in stage._pending] == [1]
    stage._give_away([partition], Deadline.after(stage._clock, 0.01))
    assert settler.seen == (1, 0)


def test_what_waits_to_be_settled_later_is_forgotten_with_its_partition() -> None:
    clock = HandClock()
    stage, _, partition = stage_with(Intake(), clock, parked=2)
    stage._dispatch()
    ended(stage, partition, 0, 1, outputs=WAITS_ON)
    stage._abandon(partition)
    clock.now += LINGER_SECONDS
    ended(stage, partition)
    assert not stage._pending


def test_a_partition_whose_progress_could_not_be_read_is_fetched_again_and_opened() -> None:
    intake = Intake()
    stage, _, _ = stage_with(intake, HandClock())
    stage.assigned([("requests", 1)])
    new = stage._partitions["requests", 1]
    new.paused, intake.away = False, True
    stage._take([Record("requests", 1, 0, b""), Record("requests", 1, 1, b"")], [])
    assert stage._settler.state is SettlerState.SWEEPING
    for _ in range(2):
        stage._regulate()
    assert (new.phase, intake.paused, intake.resumed) == (Phase.ASSIGNED, [new.id], [(*new.id, 0)])
    intake.away = False
    stage._take([Record("requests", 1, 0, b""), Record("requests", 1, 1, b"")], [])
    assert (new.phase, new.ledger.taken) == (Phase.OPEN, frozenset({0, 1}))


def test_an_end_behind_records_that_are_fetched_again_makes_nothing_of_them_done() -> None:
    intake = Intake()
    stage, _, _ = stage_with(intake, HandClock())
    stage.assigned([("requests", 1)])
    new = stage._partitions["requests", 1]
    new.paused, intake.away = False, True
    stage._take([Record("requests", 1, 0, b"")], [])
    intake.away = False
    stage._take([Record("requests", 1, 1, b"")], [("requests", 1, 2)])  # before it could be paused
    assert (new.phase, new.rewind_to, new.ledger.base, new.ledger.next_offset) == (Phase.OPEN, 0, 0, 0)


def test_a_partition_begins_anew_where_kafka_has_undone_what_it_had_confirmed() -> None:
    intake = Intake()
    stage, _, partition = stage_with(intake, HandClock())
    stage._take([Record("requests", 0, offset, b"") for offset in range(4)], [])
    partition.settle([0, 1, 3], partition.progress([0, 1, 3]))
    intake.progress = Progress(2, 0b10)
    stage._reread()
    assert partition.owned
    assert partition.ledger.taken == {2}
    intake.progress = Progress(1, open=True, suspects={2: Suspect(running=True)})
    stage._reread()
    anew = stage._partitions[partition.id]
    assert (partition.phase, anew.phase) == (Phase.GONE, Phase.ASSIGNED)
    for _ in range(2):
        stage._regulate()
    assert (intake.paused, intake.resumed) == ([anew.id], [(*anew.id, 1)])
    stage._take([Record("requests", 0, offset, b"") for offset in range(1, 4)], [])
    assert (anew.phase, anew.ledger.taken) == (Phase.OPEN, {1, 2, 3})
    assert (anew.careful_records, anew.suspects) == (0, {})  # nobody died


def test_a_gap_that_is_seen_while_a_transaction_is_under_way_is_committed_by_a_later_one() -> None:
    stage, _, partition = stage_with(Intake(), HandClock())
    stage._take([Record("requests", 0, 0, b"")], [])
    on_its_way = partition.progress([0])
    stage._take([], [("requests", 0, 3)])
    partition.settle([0], on_its_way)
    assert (partition.ledger.base, partition.ledger.gaps_unsettled) == (3, True)
    partition.settle([], partition.progress([]))
    assert not partition.ledger.gaps_unsettled


def test_a_partition_that_leaves_is_dropped_where_what_it_had_confirmed_is_undone() -> None:
    intake = Intake()
    stage, _, partition = stage_with(intake, HandClock())
    stage._take([Record("requests", 0, 0, b"")], [])
    partition.settle([0], partition.progress([0]))
    partition.phase = Phase.REVOKING
    stage._reread()
    assert (partition.phase, stage._partitions) == (Phase.GONE, {})


def test_a_stage_in_which_everything_waits_for_its_time_looks_no_more_often_than_an_idle_one() -> None:
    pace = Desk()
    pace.due_at_ms = 1 << 60
    clock = HandClock()
    stage, loop, partition = stage_with(Intake(), clock, parked=5, pace=pace)
    stage._dispatch()
    stage._regulate()
    assert (loop.calls, partition.parked, stage._patience()) == ([], 5, IDLE_SECONDS)
    pace.due_at_ms = 0  # a clock was set
    clock.now += LOOK_AGAIN_SECONDS
    stage._dispatch()
    assert [len(batch) for batch, _ in loop.calls] == [5]


class Tier(Desk):
    """A pace that lets each record go five seconds after it was appended."""

    def due_ms(self, record: Record) -> int | None:
        return record.timestamp_ms + 5_000


def appended(offset: int, at: float) -> Record:
    return Record("requests", 0, offset, b"", timestamp_ms=round(at * 1000))


def test_what_waits_in_a_tier_is_fetched_once() -> None:
    """Ten records a second come and go, and some fifty wait."""
    clock, intake = HandClock(), Intake()
    stage, loop, partition = stage_with(intake, clock, pace=Tier(1 << 30))
    for offset in range(300):
        clock.now += 0.1
        stage._take([appended(offset, clock.now)], [])
        stage._dispatch()
        stage._regulate()
    assert (intake.paused, partition.ledger.next_offset) == ([], 300)
    sent = [record.offset for batch, _ in loop.calls for _, record in batch]
    assert sent == list(range(len(sent)))
    assert abs(partition.parked - 50) <= 1


def test_what_does_not_fit_is_fetched_a_few_times_and_all_of_it_goes_in_order() -> None:
    clock, intake = HandClock(), Intake()
    stage, loop, partition = stage_with(intake, clock, pace=Tier(1 << 30))
    stage._window.limits = Limits(records=1 << 30)  # nothing is settled here
    log = [appended(offset, 100.0 + offset / 100) for offset in range(4_000)]
    position, fetched = 0, 0
    while partition.parked or position < len(log):
        clock.now += 0.1
        if not partition.paused:
            came = log[position : position + 1_000]
            position, fetched = position + len(came), fetched + len(came)
            stage._take(came, [])
        stage._dispatch()
        stage._regulate()
        if intake.resumed:
            *_, sought = intake.resumed.pop()
            position = position if sought is None else sought
    assert [record.offset for batch, _ in loop.calls for _, record in batch] == list(range(len(log)))
    assert fetched < 5 * len(log)


@pytest.mark.parametrize("resumed", [False, True])
def test_what_was_given_back_is_fetched_again_although_the_partition_looks_stalled(resumed: bool) -> None:
    """Or nobody did it, and the partition stood still, until it went to another process."""
    clock, intake = HandClock(), Intake()
    stage, _, partition = stage_with(intake, clock, pace=Tier(1 << 30))
    stage._window.limits = Limits(records=1 << 30)  # nothing is settled here
    count = 2 * AHEAD_RECORDS - 24
    stage._take([appended(offset, 100.0 + offset / 1000) for offset in range(count)], [("requests", 0, count)])
    stage._dispatch()
    if resumed:
        stage._regulate()
        clock.now += 5.0 + (AHEAD_RECORDS - 112) / 1000
        stage._dispatch()
        stage._regulate()
        assert (intake.resumed, partition.parked, partition.paused) == ([("requests", 0, AHEAD_RECORDS)], 111, False)
    clock.now += STALL_SECONDS
    for _ in range(2):
        stage._regulate()
    assert intake.paused == [partition.id] * (1 + resumed)
    assert [offset for *_, offset in intake.resumed] == [AHEAD_RECORDS] * (2 * resumed)
    assert partition.rewind_to == (None if resumed else AHEAD_RECORDS)


def stage_beside_a_tier(pace: Desk, records: int) -> tuple[Stage, BusyLoop]:
    """A stage with so many records of a tier and as many others, all of them due."""
    stage, loop, _ = stage_with(Intake(), HandClock(), parked=records, pace=pace, group_commit_seconds=IDLE_SECONDS)
    stage.assigned([("tier", 0)])
    tier = stage._partitions["tier", 0]
    tier.open(Progress(0), 0)
    tier.open_committed = True
    stage._take([Record("tier", 0, offset, b"") for offset in range(records)], [])
    return stage, loop


def handed_over(loop: BusyLoop) -> list[tuple[int, int]]:
    """Of the tier and of others, in each round in which there were any."""
    rounds = [[partition.paced for partition, _ in batch] for batch, _ in loop.calls]
    return [(sum(paced), len(paced) - sum(paced)) for paced in rounds]


def test_of_a_tier_whose_records_are_due_together_a_few_are_handed_over_in_each_round() -> None:
    """Or what has just come waits behind hundreds that have waited for seconds."""
    stage, loop = stage_beside_a_tier(Desk(1 << 30), 40)
    patience = []
    for _ in range(3):
        stage._dispatch()
        patience.append(stage._patience())
    assert handed_over(loop) == [(16, 40), (16, 0), (8, 0)]
    assert patience == [0.001, 0.001, IDLE_SECONDS]


def test_a_stage_that_has_handed_over_all_of_a_tier_looks_no_more_often_than_before() -> None:
    stage, loop = stage_beside_a_tier(Desk(1 << 30), 16)
    for _ in range(2):
        stage._dispatch()
    assert (handed_over(loop), stage._patience()) == ([(16, 16)], IDLE_SECONDS)


def test_what_is_due_in_a_tier_is_all_handed_over_where_nothing_else_is_fetched_for_it() -> None:
    """Or a window that is full of it keeps new records from coming for seconds."""
    stage, loop = stage_beside_a_tier(Desk(1 << 30), 40)
    stage._window.first.full = True
    stage._dispatch()
    assert handed_over(loop) == [(40, 40)]


@pytest.mark.parametrize("room", [1, 2, 5, 40])
def test_neither_a_tier_nor_others_keep_all_the_places_where_there_are_few(room: int) -> None:
    stage, loop = stage_beside_a_tier(Desk(room), 400)
    for _ in range(400 // room):
        stage._dispatched = 0  # all of them have begun
        stage._dispatch()
    tier, others = map(sum, zip(*handed_over(loop), strict=True))
    assert tier + others == 400
    assert abs(tier - 80) <= 1


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
        """How many transactions had been begun after a round with something complete and so many new records."""
        nonlocal offset
        stage._complete(Handled(partition, Record("requests", 0, 9_999, b""), (), 0.0), 0.0)
        stage._take([Record("requests", 0, offset + number, b"") for number in range(new)], [])
        offset += new
        stage._turn()
        return settler.begun

    assert (begun_beside(1), stage._patience()) == (0, 0.001)
    assert begun_beside(1) == 1
    assert (begun_beside(FEW_RECORDS), begun_beside(0)) == (1, 2)
    assert begun_beside(FEW_RECORDS + 1) == 3
    partition.paced = True
    assert begun_beside(1) == 4, "what is paced is not waited for"


def test_what_is_not_due_was_not_begun_by_an_owner_that_died_and_goes_on_waiting() -> None:
    """A tier is a queue: nor was anything behind it."""

    class Later(Desk):
        def due_ms(self, record: Record) -> int | None:
            return 0 if record.offset < 3 else 1 << 60

    stage, _, partition = stage_with(Intake(), HandClock(), pace=Later())
    partition.open(Progress(0, open=True), 4096)
    stage._take([Record("requests", 0, offset, b"") for offset in range(10)], [])
    cohort = stage._isolation.next_cohort(10)
    assert cohort is not None
    assert [record.offset for _, record in cohort.members] == [0, 1, 2]
    assert partition.parked == 7


def regained(stage: Stage, intake: Intake, progress: Progress | None) -> Partition:
    """The partition after another assignment, with this committed, and its first records."""
    stage.assigned([("requests", 0)])
    intake.progress = progress
    stage._take([Record("requests", 0, offset, b"") for offset in range(4)], [])
    return stage._partitions["requests", 0]


def committed(stage: Stage, partition: Partition, *offsets: int) -> Progress:
    """Settles these, and returns what Kafka has of it."""
    progress = partition.progress(list(offsets))
    partition.settle(list(offsets), progress)
    return Progress.decode(progress.base, progress.encode())


def test_a_partition_that_comes_back_as_this_process_left_it_is_not_suspected() -> None:
    """A pause of nine seconds, without any death, had a backlog tried 32 records at a time."""
    intake = Intake()
    stage, _, partition = stage_with(intake, HandClock(), parked=4)
    left = committed(stage, partition, 0, 2)
    stage.lost([partition.id])
    assert left.open
    anew = regained(stage, intake, left)
    assert anew is not partition
    assert (anew.careful_records, anew.parked, stage._isolation.idle) == (0, 2, True)


def test_a_commit_that_came_through_after_the_partition_was_lost_is_this_processs_too() -> None:
    intake = Intake()
    stage, _, partition = stage_with(intake, HandClock(), parked=4)
    committed(stage, partition, 0)
    partition.sent = partition.progress([1])
    stage.lost([partition.id])
    sent = Progress.decode(partition.sent.base, partition.sent.encode())
    assert regained(stage, intake, sent).careful_records == 0


@pytest.mark.parametrize("meanwhile", ["another owner settled", "another owner suspected", "first seen"])
def test_a_partition_that_another_owner_left_open_is_suspected_also_by_who_had_it_before(meanwhile: str) -> None:
    intake = Intake()
    stage, _, partition = stage_with(intake, HandClock(), parked=4)
    left = committed(stage, partition, 0)
    if meanwhile != "first seen":
        stage.lost([partition.id])
    else:
        stage.revoked([partition.id])
        stage._left.clear()
    found = {
        "another owner settled": Progress(2, open=True),
        "another owner suspected": Progress(left.base, left.done, open=True, suspects={1: Suspect(running=True)}),
        "first seen": left,
    }[meanwhile]
    anew = regained(stage, intake, found)
    assert stage._isolation.involves(anew)


def test_a_partition_whose_first_window_was_not_through_is_suspected_again() -> None:
    """This process is alive, and the one that left the partition open is dead all the same."""
    intake = Intake()
    stage, _, partition = stage_with(intake, HandClock())
    stage.lost([partition.id])
    stage._left.clear()
    found = Progress(0, open=True)
    first = regained(stage, intake, found)
    assert stage._isolation.involves(first)
    stage.lost([first.id])
    assert stage._isolation.involves(regained(stage, intake, found))


def test_first_windows_of_many_partitions_take_no_more_places_than_the_window_has() -> None:
    stage, loop, _ = stage_with(Intake(), HandClock(), pace=Desk(20))
    stage.assigned([("requests", number) for number in range(1, 5)])
    for partition in stage._partitions.values():
        partition.open(Progress(0, open=True), 100)
        partition.open_committed = True
    stage._take([Record("requests", number, offset, b"") for number in range(5) for offset in range(50)], [])
    for _ in range(3):
        stage._dispatch()
        if stage._isolation.announced is not None:
            stage._isolation.announced.committed = True
    assert sum(len(batch) for batch, _ in loop.calls) == 20


def died(stage: Stage, loop: BusyLoop) -> list[int]:
    """Dispatches, and has everything that runs die with the engine; the offsets of it."""
    stage._dispatch()
    if stage._isolation.announced is not None:
        stage._isolation.announced.committed = True
        stage._dispatch()
    batch, _ = loop.calls[-1]
    for partition, record in batch:
        stage._completions.put(Handled(partition, record, None, 0.0))
    stage._collect()
    return [record.offset for _, record in batch]


def test_a_stage_in_which_record_after_record_dies_alone_stops_and_says_why() -> None:
    stage, loop, _ = stage_with(Intake(), HandClock(), parked=20)
    tried = []
    while stage._stopping is None:
        tried.append(died(stage, loop))
        stage._turn()
    assert [len(offsets) for offsets in tried[-4:]] == [1] * 4
    assert isinstance(stage._sick, NothingCompletes)
    assert stage._isolation.condemned == []


def test_a_suspect_before_its_last_attempt_waits_ten_seconds_for_others_where_there_are_none() -> None:
    clock = HandClock()
    stage, loop, _ = stage_with(Intake(), clock, parked=1)
    for _ in range(3):
        assert died(stage, loop) == [0]
    stage._turn()
    calls = len(loop.calls)
    clock.now += OTHERS_SECONDS - 1
    stage._dispatch()
    assert (len(loop.calls), stage._stopping) == (calls, None)
    clock.now += 1
    assert died(stage, loop) == [0]
    stage._turn()
    assert isinstance(stage._sick, NothingCompletes)


def test_a_suspect_before_its_last_attempt_holds_up_nothing_and_is_given_up_once_others_completed() -> None:
    stage, loop, partition = stage_with(Intake(), HandClock(), parked=1)
    for _ in range(3):
        assert died(stage, loop) == [0]
    stage._take([Record("requests", 0, offset, b"") for offset in (1, 2)], [])
    stage._turn()
    assert [record.offset for _, record in loop.calls[-1][0]] == [1, 2]
    ended(stage, partition, 1, 2)
    assert died(stage, loop) == [0]
    stage._turn()
    assert [call[1].offset for call in loop.calls if len(call) == 4] == [0]
    assert stage._sick is None


def test_no_record_is_begun_beyond_what_the_last_commit_allows_and_the_next_one_follows_at_once() -> None:
    """Its commits say how many records may be under way, so that a crash has no more of them suspected."""
    stage, loop, partition = stage_with(Intake(), HandClock(), parked=200, pace=Desk(1 << 30))
    begun = 0
    while begun < 200:
        assert begun == 0 or stage._compose().offsets == {partition: []}, "nothing is complete; a commit is due"
        limit = committed(stage, partition) and partition.confirmed.limit
        stage._dispatch()
        begun = sum(len(batch) for batch, _ in loop.calls)
        assert begun == min(limit, 200)
    assert stage._compose().offsets == {}


def test_the_drain_of_a_stop_ends_with_its_time_also_where_it_begins_late() -> None:
    clock = HandClock()
    stage, _, partition = stage_with(Intake(), clock, parked=5)
    stage._dispatch()
    stage.stop()
    assert stage._stopping is not None
    clock.now += 29.0  # a drain for a rebalance went on for so long
    stage._give_away([partition], stage._stopping)
    assert clock.now <= 100.0 + 36.0  # the second that was left, and the farewell's five


def test_partitions_that_go_are_awaited_for_less_than_a_stop_where_the_stage_says_so() -> None:
    clock = HandClock()
    stage, loop, going = stage_with(Intake(), clock, parked=5, drain_seconds=30.0, revoke_drain_seconds=4.0)
    stage.assigned([("requests", 1)])
    stage._dispatch()
    assert going.running == 5
    stage.revoked([going.id])
    assert 104.0 <= clock.now <= 100.0 + 10.0  # the drain's four seconds, and the farewell's five
    assert (going,) in loop.calls  # what still ran was cancelled, and the next owner does it again
    assert going.phase is Phase.GONE
    assert list(stage._partitions) == [("requests", 1)]
    stage.stop()
    assert stage._stopping is not None
    assert stage._stopping.remaining == 30.0
