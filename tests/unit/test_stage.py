"""The stage: consuming, pacing, gaps, its parts as roles build them, and transactions that are repaired."""

from __future__ import annotations

import asyncio
import json
import math
import struct
from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.drawn import drawn
from tests.unit.stage_rig import (
    BusyLoop,
    Desk,
    Intake,
    OneParty,
    Settler,
    bare_stage,
    ended,
    handled,
    offsets_of,
    records,
    reread,
    stage_with,
)
from workers.delivery.settings import DeliverySettings
from workers.delivery.tier_pace import TierPace
from workers.roles.delivery import stages_of
from workers.stage import build
from workers.stage.dispatcher import CRASH_SECONDS, OTHERS_SECONDS, SAY_SECONDS, NothingCompletes
from workers.stage.due_queue import AHEAD_RECORDS, LOOK_AGAIN_SECONDS
from workers.stage.fetching import STALL_SECONDS
from workers.stage.isolation import DEATHS_IN_A_ROW
from workers.stage.ledger import Ledger
from workers.stage.partition import GAP_SECONDS, LEAST_MARGIN, MOST_MARGIN, Partition, Phase, undone_below
from workers.stage.progress import Progress, Suspect, begun_of
from workers.stage.record import Output, Record
from workers.stage.runner import Handled
from workers.stage.settings import StageSettings
from workers.stage.settler import OUTPUTS_A_HOME, Batch, SettlerState
from workers.stage.settler import Settler as RealSettler
from workers.stage.sharing import Place, Unpaced
from workers.stage.source import Coordinator, GroupRefused, GroupSource, Listener, PartitionId, is_admitted
from workers.stage.stage import IDLE_SECONDS, Stage
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
from workers.stage.watch import LOOK_SECONDS
from workers.stage.window import Limits
from workers.system.memory_limit import MIB


# -- stage -----------------------------------------------------------------------------------------------------------
def test_a_pace_or_a_sharing_that_raises_at_a_record_ends_nothing_and_lets_the_record_run() -> None:
    class Raising(Desk):
        later_share = 0.5

        def due_ms(self, record: Record) -> int | None:
            raise KeyError(record.offset)

        def assess(self, record: Record) -> None:
            raise OverflowError(record.headers)

        def place(self, topic: str) -> Place:
            return Place.FIRST

        def defer(self, record: Record) -> Sequence[Output]:
            raise AssertionError(record)

    for shared in (False, True):
        metrics, sharing = Metrics(), Raising() if shared else None
        stage, loop, _ = stage_with(Intake(), HandClock(), pace=Raising(), sharing=sharing, metrics=metrics)
        stage.take(records(0), [])
        stage.dispatch()
        (([(_, record)], _),) = loop.calls
        assert record.offset == 0
        call = {"call": "assess" if shared else "due_ms"}
        assert (metrics.registry.get_sample_value("postback_handler_defects_total", call) or 0) >= 1


def test_no_more_is_handed_over_than_there_is_room_for_while_the_event_loop_is_busy() -> None:
    stage, loop, _ = stage_with(Intake(), HandClock(), parked=100)
    for _ in range(5):
        stage.dispatch()
    assert sum(len(batch) for batch, _ in loop.calls) == 10


def test_a_partition_that_was_paused_for_long_is_not_taken_for_stalled_once_it_is_resumed() -> None:
    intake, clock = Intake(), HandClock()
    stage, _, partition = stage_with(intake, clock)
    partition.paused = True
    clock.now += 60.0
    stage.regulate()
    assert not partition.paused
    clock.now += 1.0
    stage.regulate()
    assert (intake.paused, partition.paused) == ([], False)


def test_a_long_drain_does_not_look_like_a_thread_that_hangs() -> None:
    clock = HandClock()
    stage, _, _ = stage_with(Intake(), clock)
    clock.now += 100.0
    assert not stage.watch.alive
    stage.turn()
    assert stage.watch.alive


def test_no_record_begins_while_too_many_wait_to_be_settled() -> None:
    stage, loop, partition = stage_with(Intake(), HandClock(), parked=3_000, pace=Desk(1 << 30))
    window = stage.dispatcher.window.limits.records
    for start in (0, window, 2 * window):  # the handler answers a window at once each time, and nothing is settled
        stage.dispatch()
        ended(stage, partition, *range(start, start + stage.partitions.load.running))
    assert sum(len(batch) for batch, _ in loop.calls) == 2 * window
    stage.transactions.pending = stage.transactions.pending[:window]
    stage.dispatch()
    assert stage.partitions.load.running == 3_000 - 2 * window


def test_a_partition_whose_progress_could_not_be_read_is_fetched_again_and_opened() -> None:
    intake, settler = Intake(), Settler()
    stage, _, _ = stage_with(intake, HandClock(), settler=settler)
    stage.assigned([("requests", 1)])
    new = stage.partitions.held["requests", 1]
    new.paused, intake.away = False, True
    stage.take([Record("requests", 1, 0, b""), Record("requests", 1, 1, b"")], [])
    assert settler.state is SettlerState.SWEEPING
    for _ in range(2):
        stage.regulate()
    assert (new.phase, intake.paused, intake.resumed) == (Phase.ASSIGNED, [new.id], [(*new.id, 0)])
    intake.away = False
    stage.take([Record("requests", 1, 0, b""), Record("requests", 1, 1, b"")], [])
    assert (new.phase, new.ledger.taken) == (Phase.OPEN, frozenset({0, 1}))


def test_an_end_after_refetched_records_marks_none_of_them_as_done() -> None:
    intake = Intake()
    stage, _, _ = stage_with(intake, HandClock())
    stage.assigned([("requests", 1)])
    new = stage.partitions.held["requests", 1]
    new.paused, intake.away = False, True
    stage.take([Record("requests", 1, 0, b"")], [])
    intake.away = False
    # This record was fetched before the pause took effect.
    stage.take([Record("requests", 1, 1, b"")], [("requests", 1, 2)])
    assert (new.phase, new.rewind_to, new.ledger.base, new.ledger.next_offset) == (Phase.OPEN, 0, 0, 0)


def test_a_partition_starts_over_if_kafka_has_undone_confirmed_progress() -> None:
    intake, settler = Intake(), Settler()
    stage, _, partition = stage_with(intake, HandClock(), settler=settler)
    stage.take(records(*range(4)), [])
    partition.settle([0, 1, 3], partition.progress([0, 1, 3]))
    intake.progress = Progress(2, 0b10)
    reread(stage, settler)
    assert partition.owned
    assert partition.ledger.taken == {2}
    intake.progress = Progress(1, open=True, suspects={2: Suspect(running=True)})
    reread(stage, settler)
    anew = stage.partitions.held[partition.id]
    assert (partition.phase, anew.phase) == (Phase.GONE, Phase.ASSIGNED)
    for _ in range(2):
        stage.regulate()
    assert (intake.paused, intake.resumed) == ([anew.id], [(*anew.id, 1)])
    stage.take(records(*range(1, 4)), [])
    assert (anew.phase, anew.ledger.taken) == (Phase.OPEN, frozenset({1, 2, 3}))
    assert (anew.careful_records, anew.suspects) == (0, {})  # no process died, so no record is suspected


def test_a_gap_that_is_seen_while_a_transaction_is_under_way_is_committed_by_a_later_one() -> None:
    stage, _, partition = stage_with(Intake(), HandClock())
    stage.take(records(0), [])
    on_its_way = partition.progress([0])
    stage.take([], [("requests", 0, 3)])
    partition.settle([0], on_its_way)
    assert (partition.ledger.base, partition.ledger.gaps_unsettled) == (3, True)
    partition.settle([], partition.progress([]))
    assert not partition.ledger.gaps_unsettled


def test_a_leaving_partition_is_dropped_if_its_confirmed_progress_is_undone() -> None:
    settler = Settler()
    stage, _, partition = stage_with(Intake(), HandClock(), settler=settler)
    stage.take(records(0), [])
    partition.settle([0], partition.progress([0]))
    partition.close()
    reread(stage, settler)
    assert (partition.phase, stage.partitions.held) == (Phase.GONE, {})


def test_the_drain_of_a_stop_ends_with_its_time_also_where_it_begins_late() -> None:
    clock = HandClock()
    stage, _, partition = stage_with(Intake(), clock, parked=5)
    stage.dispatch()
    stage.stop()
    assert stage.stopping is not None
    clock.now += 29.0  # 29 of the 30 s for the drain have passed
    stage.drain()
    assert partition.phase is Phase.GONE
    assert clock.now <= 100.0 + 36.0  # the drain has one more second, and the farewell has five


def test_the_drain_of_revoked_partitions_may_be_shorter_than_the_drain_of_a_stop() -> None:
    clock = HandClock()
    stage, loop, going = stage_with(Intake(), clock, parked=5, drain_seconds=30.0, revoke_drain_seconds=4.0)
    stage.assigned([("requests", 1)])
    stage.dispatch()
    assert going.running == 5
    stage.revoked([going.id])
    assert 104.0 <= clock.now <= 100.0 + 10.0  # the drain has four seconds, and the farewell five
    assert (going,) in loop.calls  # running records were cancelled; the next owner repeats them
    assert going.phase is Phase.GONE
    assert list(stage.partitions.held) == [("requests", 1)]
    stage.stop()
    assert stage.stopping is not None
    assert stage.stopping.remaining == 30.0


@pytest.mark.parametrize("defect", [None, RuntimeError("a defect")])
async def test_a_stage_that_ends_closes_its_settler_before_it_leaves_the_group(defect: RuntimeError | None) -> None:
    """A transaction that stays open holds up the readers of its outputs. Once the member has left, none can commit."""
    steps: list[str] = []

    class Group(Intake):
        def join(self, listener: Listener) -> None:
            steps.append("join")

        def consume(self, most: int, seconds: float) -> tuple[list[Record], list[tuple[str, int, int]]]:
            stage.error = defect
            stage.stop()
            return [], []

        def leave(self) -> None:
            steps.append("leave")

    class Closing(Settler):
        def close(self) -> None:
            steps.append("close")

    stage, _ = bare_stage(Group(), HandClock(), settler=Closing())
    async with asyncio.timeout(60):
        if defect is None:
            await stage.run()
        else:
            with pytest.raises(RuntimeError, match="a defect"):
                await stage.run()
    assert steps == ["join", "close", "leave"]


@pytest.mark.parametrize("leaving_fails", [False, True])
def test_a_stage_whose_round_raises_closes_its_settler_and_leaves_the_group_and_commits_nothing(
    leaving_fails: bool,
) -> None:
    """Otherwise its open transaction holds up readers, and its partitions wait for the session timeout."""
    steps: list[str] = []

    class Group(Intake):
        def join(self, listener: Listener) -> None:
            stage.assigned([("requests", 0)])

        def consume(self, most: int, seconds: float) -> tuple[list[Record], list[tuple[str, int, int]]]:
            raise RuntimeError("a defect")

        def leave(self) -> None:
            steps.append(f"leave with {len(stage.partitions.held)} partitions")
            if leaving_fails:
                raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    class Closing(Settler):
        def close(self) -> None:
            steps.append("close")

    stage, _ = bare_stage(Group(), HandClock(), settler=Closing())
    with pytest.raises(RuntimeError, match="a defect"):
        stage.live()
    assert steps == ["close", "leave with 0 partitions"]


def test_the_kafka_thread_makes_no_rounds_of_a_millisecond_while_a_transaction_is_under_way() -> None:
    clock, settler = HandClock(), Settler()
    stage, _, partition = stage_with(Intake(), clock, settler=settler, pace=Desk(1_000))
    waits = []
    for _ in range(30):
        stage.take([Record("requests", 0, partition.ledger.next_offset, b"")], [])
        stage.dispatch()
        ended(stage, partition, partition.ledger.next_offset - 1)
        clock.now += 1.0  # the record has waited for others
        settler.state, settler.resting = SettlerState.READY, False
        batches: list[Batch] = []
        settler.settle, settler.settled = batches.append, batches.pop  # type: ignore[attr-defined]
        stage.settle(0)
        (batch,) = batches
        batch.progress = {partition: partition.progress(batch.offsets[partition])}
        settler.state = SettlerState.SETTLING
        waits.append(stage.patience())
        clock.now += 0.008
        batches.append(batch)
        stage.settle(0)
    assert (waits[0], round(waits[-1], 3)) == (0.001, 0.008)
    stage.take([Record("requests", 0, partition.ledger.next_offset, b"")], [])
    assert stage.patience() == 0.001, "a queued record may get room at once"


class Tenants(OneParty):
    """A sharing between the tenants in the records' headers, each with an estimated cost of 10."""

    later_share = 0.1

    def assess(self, record: Record) -> None:
        record.party, record.cost = dict(record.headers or ())["tenant"] or b"", 10.0


def test_a_tenant_whose_records_cost_more_than_estimated_waits_for_the_others() -> None:
    stage, loop, partition = stage_with(Intake(), HandClock(), sharing=Tenants())
    dear, cheap = [("tenant", b"dear")], [("tenant", b"cheap")]
    stage.take([Record("requests", 0, offset, b"", headers=dear if offset % 2 else cheap) for offset in range(60)], [])
    stage.dispatch()
    ((batch, _),) = loop.calls
    assert [record.offset for _, record in batch] == [*range(10)]
    for _, record in batch:
        record.spent = 50.0 if record.offset % 2 else 10.0
        stage.transactions.completions.put([Handled(partition, record, (), 0.0)])
    stage.proxy.runner.begun += len(batch)
    stage.collect()
    stage.dispatch()
    assert [record.offset % 2 for _, record in loop.calls[1][0]] == [0] * 10


# -- stage build -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("paced", [False, True])
def test_less_is_fetched_ahead_of_tiers_whose_records_may_be_given_back(
    paced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    kafka, clock = KafkaSettings(), SystemClock()

    def intake(*args: Any, **options: Any) -> Any:
        found.update(options)
        return GroupSource(*args, **options)

    monkeypatch.setattr(build, "GroupSource", intake)
    pace = TierPace(kafka.topics, clock) if paced else Unpaced()
    read = [kafka.topics.results, *kafka.topics.tiers.values()]
    handler: Any = None
    build.group_stage(StageSettings("some"), kafka, read, "a", handler, clock, Metrics(), pace)
    assert found["prefetch_records"] == (build.AHEAD_OF_PACED if paced else 2048)


def test_results_and_tiers_have_stages_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """If one stage read results and tiers, new results would wait behind tiers' records, which come due in crowds."""
    kafka, clock, metrics = KafkaSettings(topic_prefix="a."), SystemClock(), Metrics()
    settings = DeliverySettings(window_bytes=64 * MIB)
    read: list[list[str]] = []
    identities: list[str] = []

    def intake(config: Any, group: str, topics: list[str], **options: Any) -> Any:
        assert group == "a.delivery"
        read.append(topics)
        return GroupSource(config, group, topics, **options)

    def settler(config: Any, identity: str, *parts: Any) -> Any:
        identities.append(identity)
        return RealSettler(config, identity, *parts)

    monkeypatch.setattr(build, "GroupSource", intake)
    monkeypatch.setattr(build, "Settler", settler)
    pace: Any = TierPace(kafka.topics, clock)
    results, tiers = stages_of(pace, settings, kafka, "d0", clock, metrics, ["a.callback_retries.7s"])
    assert read == [
        [kafka.topics.results, kafka.topics.events],
        [*kafka.topics.tiers.values(), "a.callback_retries.7s", *kafka.topics.later.values()],
    ]
    assert identities == ["a.delivery.d0", "a.delivery.d0.tiers"]
    limits = [stage.dispatcher.window.limits for stage in (results, tiers)]
    assert [(each.records, each.bytes) for each in limits] == [(settings.window_records, 32 * MIB)] * 2


# -- stage pacing ----------------------------------------------------------------------------------------------------
def test_a_stage_in_which_everything_waits_for_its_time_looks_no_more_often_than_an_idle_one() -> None:
    pace = Desk()
    pace.due_at_ms = 1 << 60
    clock = HandClock()
    stage, loop, _ = stage_with(Intake(), clock, parked=5, pace=pace)
    stage.dispatch()
    stage.regulate()
    assert (loop.calls, waiting(stage), stage.patience()) == ([], 5, IDLE_SECONDS)
    pace.due_at_ms = 0  # the records are due now, as if the wall clock had been set forward
    clock.now += LOOK_AGAIN_SECONDS
    stage.dispatch()
    assert [len(batch) for batch, _ in loop.calls] == [5]


def test_jobs_that_start_later_hold_up_no_other_partition_and_run_in_order_once_they_are_due() -> None:
    topics, clock = KafkaSettings().topics, HandClock(1_764_700_000.0)
    now_ms = round(1000 * clock.time())
    pace: Any = TierPace(topics, clock)
    stage, loop = bare_stage(Intake(), clock, pace=pace)
    long, short = topics.later[21600], topics.later[5]
    stage.assigned([(long, 0), (short, 0)])
    for partition in stage.partitions.held.values():
        partition.open(Progress(0), 0)
        partition.open_committed, partition.paused = True, False
    begun: list[tuple[str, int]] = []

    def run_for(seconds: float) -> None:
        clock.now += seconds
        stage.dispatch()
        begun.extend((record.topic, record.offset) for batch, _ in loop.calls for _, record in batch)
        loop.calls.clear()

    stage.take([Record(topic, 0, offset, b"job", None, [], now_ms) for topic in (long, short) for offset in (0, 1)], [])
    run_for(4)
    assert (begun, waiting(stage)) == ([], 4)
    run_for(2)
    assert (begun, waiting(stage)) == ([(short, 0), (short, 1)], 2)
    run_for(21600)
    assert (begun[2:], waiting(stage)) == ([(long, 0), (long, 1)], 0)


def waiting(stage: Stage) -> int:
    """The number of records that are not due, or wait for the window."""
    assert stage.dispatcher.due is not None
    return len(stage.dispatcher.due) + stage.dispatcher.window.queued


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
    assert abs(waiting(stage) - 50) <= 1


def test_records_that_do_not_fit_are_fetched_a_few_times_and_all_go_in_order() -> None:
    clock, intake = HandClock(), Intake()
    stage, loop, partition = stage_with(intake, clock, pace=Tier(1 << 30))
    # The window gets room for all records, because nothing is settled here.
    stage.dispatcher.window.limits = Limits(records=1 << 30)
    log = [appended(offset, 100.0 + offset / 100) for offset in range(4_000)]
    position, fetched = 0, 0
    while waiting(stage) or position < len(log):
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
    stage.dispatcher.window.limits = Limits(records=1 << 30)
    count = 2 * AHEAD_RECORDS - 24
    stage.take([appended(offset, 100.0 + offset / 1000) for offset in range(count)], [("requests", 0, count)])
    stage.dispatch()
    if resumed:
        stage.regulate()
        clock.now += 5.0 + (AHEAD_RECORDS - 112) / 1000
        stage.dispatch()
        stage.regulate()
        assert (intake.resumed, waiting(stage), partition.paused) == ([("requests", 0, AHEAD_RECORDS)], 111, False)
    clock.now += STALL_SECONDS
    for _ in range(2):
        stage.regulate()
    assert intake.paused == [partition.id] * (1 + resumed)
    assert [offset for *_, offset in intake.resumed] == [AHEAD_RECORDS] * (2 * resumed)
    assert partition.rewind_to == (None if resumed else AHEAD_RECORDS)


def test_a_partition_that_never_delivers_anything_is_assigned_again_and_again() -> None:
    """The client reads nothing from a partition whose committed offset it was refused, and says so only once."""
    clock, intake = HandClock(), Intake()
    stage, _ = bare_stage(intake, clock)
    stage.assigned([("requests", 0), ("requests", 1)])
    again = list[PartitionId]()
    for _ in range(2):
        stage.regulate()  # resumes the partitions
        stage.take(records(0), [])
        clock.now += STALL_SECONDS - 0.1
        stage.regulate()
        assert intake.assigned_again == again
        clock.now += 0.2
        stage.regulate()
        again.append(("requests", 1))
        assert intake.assigned_again == again
    assert intake.resumed.count(("requests", 1, None)) == 1 + len(again)


# -- stage backlog ---------------------------------------------------------------------------------------------------
class Log(Intake):
    """A partition with ten records."""

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        return 0, 10


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


# -- intake ----------------------------------------------------------------------------------------------------------
def intake_over(consumer: Any) -> GroupSource:
    return GroupSource({}, "group", ["requests"], on_error=lambda _: None, make_consumer=lambda _: consumer)


class Unseekable:
    """A consumer that is still setting up one of its fetches."""

    def __init__(self) -> None:
        self.paused: list[TopicPartition] = []

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition("requests", 0), TopicPartition("requests", 1)]

    def seek(self, partition: TopicPartition) -> None:
        raise KafkaException(KafkaError(KafkaError._STATE))

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused += partitions


def test_a_refused_pause_is_reported_and_pauses_nothing() -> None:
    consumer: Any = Unseekable()
    intake = intake_over(consumer)
    assert not intake.flow([("requests", 0)], [("requests", 1, 7)])
    assert consumer.paused == []


class Ended:
    """A consumer whose client gave up: librdkafka reports this error once, with a code of its own and no fatal flag."""

    def poll(self, timeout: float) -> Any:
        return self

    def consume(self, count: int, timeout: float) -> list[Any]:
        return []

    def error(self) -> KafkaError:
        return KafkaError(KafkaError._FATAL, "ConsumerGroupHeartbeat fatal error: Broker: API version not supported")


def test_a_client_that_gave_up_ends_the_stage_and_the_text_says_what_an_old_kafka_lacks() -> None:
    """A client that gave up returns no more records. An earlier version of the worker kept polling in vain."""
    consumer: Any = Ended()
    intake = intake_over(consumer)
    with pytest.raises(GroupRefused, match=r"API version not supported.*4\.0 or newer") as refused:
        intake.consume(10, 0.1)
    assert not isinstance(refused.value, KafkaException)


@pytest.mark.parametrize(
    ("metadata", "admitted"),
    [
        (b"CGMDv2:" + struct.pack("=i", 2) + b"group", True),
        (b"CGMDv2:" + struct.pack("=i", 0) + b"group", False),
        (b"CGMDv2:" + struct.pack("=i", -1) + b"group", False),
        (b"CGMDv3:" + struct.pack("=i", -1) + b"group", True),  # a form that is not known
        (b"CGMDv2:", True),
        (b"", True),
    ],
)
def test_a_member_is_admitted_by_its_epoch_and_wherever_that_cannot_be_read(metadata: bytes, admitted: bool) -> None:
    assert is_admitted(metadata) is admitted


# -- gaps ------------------------------------------------------------------------------------------------------------
class Trimmed(Intake):
    """A log whose first offset is `low`, in fetches and in answers to queries."""

    low = 0
    asked = 0

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        self.asked += not cached
        return self.low, 10_000


@pytest.mark.parametrize(
    ("progress", "steps", "base", "gaps", "lost", "is_asked"),
    [
        # A loss of a few records in the middle of work is counted without a question to the broker.
        (Progress(0), [0, [0, 1], 7, [7, 8]], 0, 5, 5, False),
        # Records removed before the first commit are lost too.
        (Progress(0), [30, [30]], 30, 30, 30, True),
        # A loss with no record after it yet is counted at the end of the partition, and once.
        (Progress(20), [50, "50", "50"], 50, 30, 30, True),
        # Markers are gaps and no loss, although the log's start moves over done records.
        (Progress(0), [0, [0, 2, 4], "6", 4, [6, 8]], 0, 4, 0, False),
        # Records that an earlier owner had done are not lost.
        (Progress(10, 0b111_1111_0000), [30, [30]], 30, 20, 13, True),
    ],
)
def test_skipped_offsets_are_counted_and_those_of_removed_records_as_lost(
    progress: Progress, steps: list[int | str | list[int]], base: int, gaps: int, lost: int, is_asked: bool
) -> None:
    """A step is the log's new first offset, the offsets of fetched records, or the partition's end as text."""
    intake, metrics = Trimmed(), Metrics()
    stage, _, partition = stage_with(intake, HandClock(), metrics=metrics)
    partition.open(progress, 0)
    for step in steps:
        if isinstance(step, int):
            intake.low = step
        else:
            offsets, end = ([], [int(step)]) if isinstance(step, str) else (step, [])
            stage.take(records(*offsets), [("requests", 0, each) for each in end])
    value = metrics.registry.get_sample_value
    assert value("postback_gap_offsets_total") == gaps
    assert value("postback_retention_loss_total") == lost
    assert (partition.ledger.base, intake.asked > 0) == (base, is_asked)


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


# -- offsets behind the end ------------------------------------------------------------------------------------------
FAR = 1_000_000


class LostLog(Intake):
    """A log as librdkafka reads it from a position on: batches with their stated offsets; a marker has None.

    A fetch returns whole batches without offsets below the position, and moves the position past the highest offset.
    A position beyond the log's end is reset to its start.
    """

    def __init__(self, batches: Sequence[Sequence[int | None]]) -> None:
        super().__init__()
        self.batches: list[tuple[int, list[int]]] = []
        self.end = self.position = 0
        for deltas in batches:
            stated = [self.end + delta for delta in deltas if delta is not None]
            self.end += len(deltas)
            self.batches.append((self.end, stated))

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        return 0, self.end

    def fetch(self, count: int) -> tuple[list[int], bool]:
        """The stated offsets of the next batches, and whether they reach the end."""
        if self.position > self.end:
            self.position = 0
        found: list[int] = []
        given = [each for each in self.batches if each[0] > self.position][:count]
        for _, stated in given:
            found += [offset for offset in stated if offset >= self.position]
        if given:
            self.position = max(given[-1][0], found[-1] + 1 if found else 0)
        return found, self.position == self.end


def read_to_end(log: LostLog, per_fetch: int, given_back: set[int]) -> Partition:
    """The partition of a stage that has taken this whole log and settled nothing.

    After each round in `given_back` the stage gives the first record of that round back, as when the window is full.
    """
    stage, _, partition = stage_with(log, HandClock())
    partition.open(Progress(0), 0)
    partition.paused = False
    for turn in range(1_000):
        offsets, ended = log.fetch(per_fetch)
        stage.take(records(*offsets), [("requests", 0, log.end)] * ended)
        if turn in given_back and partition.ledger.taken:
            partition.give_back([Record("requests", 0, min(partition.ledger.taken), b"")])
        if partition.rewind_to is not None:
            log.position = partition.rewind_to
            partition.resume(0.0)
        elif ended:
            return partition
    raise AssertionError("the stage does not come to the end")


HONEST = st.integers(1, 3).map(lambda count: list(range(count)))
MARKER = st.just([None])
FORGED = st.integers(1, 4).map(lambda count: [FAR] * count)


@example([[0], [FAR], [0], [FAR, FAR], [None], [FAR], [0]], 2, set())
@example([[0], [FAR], [0], [0], [FAR], [0]], 1, {3})
@given(
    st.lists(HONEST | MARKER | FORGED, min_size=1, max_size=8),
    st.integers(1, 4),
    st.sets(st.integers(0, 9), max_size=3),
)
def test_all_other_records_are_taken_and_nothing_past_the_end_is_committed(
    batches: list[list[int | None]], per_fetch: int, given_back: set[int]
) -> None:
    log = LostLog(batches)
    honest = [o for end, stated in log.batches for o in stated if o < log.end]
    partition = read_to_end(log, per_fetch, given_back)
    assert sorted(partition.ledger.taken) == honest
    assert partition.ledger.after(honest) == (log.end, 0)


# -- horizon ---------------------------------------------------------------------------------------------------------
def opened_run(progress: Progress | None = None) -> Partition:
    """A partition whose first commit has returned."""
    partition = Partition("requests", 0, 1, 0.0)
    partition.open(progress, 1024)
    partition.settle([], partition.progress([]))
    return partition


def begun(partition: Partition, offsets: range) -> list[int]:
    """Take these records and begin as many as allowed; return the begun offsets."""
    waiting = records(*offsets)
    for record in waiting:
        partition.ledger.take(record.offset)
    allowed = list(takewhile(partition.bound.allows, waiting))
    for record in allowed:
        partition.bound.begun(record.offset)
    return [record.offset for record in allowed]


def test_before_the_next_commit_only_a_margin_of_records_is_begun() -> None:
    partition = opened_run()
    assert begun(partition, range(100)) == list(range(LEAST_MARGIN))
    assert partition.bound.held_back


def test_the_margin_grows_with_the_pace_and_shrinks_again() -> None:
    partition, at, sizes = opened_run(), 0, []
    for _ in range(12):
        sizes.append(len(begun(partition, range(at, at + MOST_MARGIN + 1))))
        at += sizes[-1]
        partition.settle([], partition.progress([]))
    assert sizes[:6] == [32, 32, 64, 128, 256, 512]
    assert sizes[-1] == MOST_MARGIN
    first = at
    for _ in range(400):  # thirty records begin after a commit, and the next commit settles all
        assert len(begun(partition, range(at, at + 30))) == 30
        recent = list(range(at, at + 30)) if at > first else list(range(at + 30))
        partition.settle(recent, partition.progress(recent))
        at += 30
    assert partition.progress([]).begun <= 64


def test_a_record_far_beyond_a_gap_is_allowed_by_the_next_commit() -> None:
    """Compaction leaves gaps of any width, so a fixed margin above the begun records might never reach the next one."""
    partition, (far,) = opened_run(), records(5_000_000)
    assert not partition.bound.allows(far)
    partition.ledger.reach(5_000_000)
    partition.settle([], partition.progress([]))
    assert partition.bound.allows(far)


def test_a_commit_names_at_most_the_running_records_and_the_margin_as_begun() -> None:
    partition = opened_run()
    begun(partition, range(LEAST_MARGIN))
    done = [offset for offset in range(LEAST_MARGIN) if offset != 3]
    progress = partition.progress(done)
    assert Progress.decode(progress.base, progress.encode()).begun == begun_of(1 + LEAST_MARGIN)


def test_the_next_owner_of_an_open_partition_suspects_as_many_as_may_have_been_begun() -> None:
    """In an earlier version, the next owner of twelve partitions suspected a whole window of records in each."""
    partition = opened_run()
    begun(partition, range(20))
    committed = partition.progress(list(range(10)))
    found = Partition("requests", 0, 2, 0.0)
    found.open(Progress.decode(committed.base, committed.encode()), 1024)
    assert found.careful_records == begun_of(10 + LEAST_MARGIN) == 64
    found.open(Progress(0, open=True), 1024)
    assert found.careful_records == 1024, "an owner of an earlier release said nothing"


@settings(max_examples=drawn(60), deadline=None)
@given(st.data())
def test_begun_records_are_always_among_the_first_undone_ones_of_the_last_commit(data: st.DataObject) -> None:
    """Records begin and end in any order, some commits never return, and the owner dies at any point."""
    partition = opened_run()
    committed = partition.confirmed
    taken, ran, ended, waiting = 0, set[int](), set[int](), list[Record]()
    for _ in range(data.draw(st.integers(1, 15), label="steps")):
        for record in records(*range(taken, taken + data.draw(st.integers(0, 80), label="come"))):
            partition.ledger.take(record.offset)
            waiting.append(record)
            taken += 1
        parties = data.draw(st.sampled_from([1, 3]), label="parties")
        for party in range(parties):  # each party has its own queue, so a later record may go first
            mine = [record for record in waiting if record.offset % parties == party]
            room = data.draw(st.integers(0, 60), label="room")
            for record in takewhile(partition.bound.allows, mine[:room]):
                partition.bound.begun(record.offset)
                ran.add(record.offset)
                waiting.remove(record)
        ended |= set(data.draw(st.lists(st.sampled_from(sorted(ran)), max_size=40)) if ran else ())
        settled = sorted(ended & partition.ledger.taken)
        progress = partition.progress(settled)
        fate = data.draw(st.sampled_from(["returned", "applied", "lost"]), label="commit")
        if fate != "lost":
            committed = Progress.decode(progress.base, progress.encode())
        if fate == "returned":
            partition.settle(settled, progress)
        undone = [offset for offset in range(committed.base, taken) if not _is_done(committed, offset)]
        assert {offset for offset in ran if not _is_done(committed, offset)} <= set(undone[: committed.begun])


def _is_done(progress: Progress, offset: int) -> bool:
    return offset < progress.base or bool(progress.done >> (offset - progress.base) & 1)


def test_only_undone_offsets_below_the_limit_are_counted() -> None:
    assert undone_below(110, 100, 0b1010) == 8
    assert undone_below(102, 100, 0b1010) == 1
    assert undone_below(100, 100, 0b1010) == undone_below(90, 100, 0) == 0


def test_a_number_of_records_is_written_as_the_next_power_of_two() -> None:
    assert [begun_of(records) for records in (0, 1, 2, 3, 33, 64, 65, 1 << 20)] == [2, 2, 2, 4, 64, 64, 128, 1 << 15]


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
