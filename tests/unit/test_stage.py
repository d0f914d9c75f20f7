"""The rounds of the Kafka thread, step by step, without Kafka, and with an event loop that never runs."""

from __future__ import annotations

from collections.abc import Sequence

from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.unit.one_party import OneParty
from tests.unit.stage_rig import Desk, Intake, Settler, ended, reread, stage_with
from workers.stage.partition import Phase
from workers.stage.progress import Progress, Suspect
from workers.stage.record import Headers, Output, Record
from workers.stage.runner import Handled
from workers.stage.settler_state import SettlerState
from workers.stage.sharing import Place


def test_a_pace_or_a_sharing_that_raises_at_a_record_ends_nothing_and_lets_the_record_run() -> None:
    class Raising(Desk):
        later_share = 0.5

        def due_ms(self, record: Record) -> int | None:
            raise KeyError(record.offset)

        def party(self, headers: Headers | None) -> bytes | None:
            raise OverflowError(headers)

        def cost(self, record: Record) -> float:
            raise ZeroDivisionError(record)

        def urgency(self, record: Record) -> int:
            raise AssertionError(record)

        def may_wait(self, record: Record) -> bool:
            raise LookupError(record)

        def place(self, topic: str) -> Place:
            return Place.FIRST

        def defer(self, record: Record) -> Sequence[Output]:
            raise AssertionError(record)

    for shared in (False, True):
        metrics, sharing = Metrics(), Raising() if shared else None
        stage, loop, _ = stage_with(Intake(), HandClock(), pace=Raising(), sharing=sharing, metrics=metrics)
        stage.take([Record("requests", 0, 0, b"")], [])
        stage.dispatch()
        (([(_, record)], _),) = loop.calls
        assert record.offset == 0
        call = {"call": "party" if shared else "due_ms"}
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
    window = stage.dispatching.window.limits.records
    for start in (0, window, 2 * window):  # the handler answers a window at once each time, and nothing is settled
        stage.dispatch()
        ended(stage, partition, *range(start, start + stage.held.load.running))
    assert sum(len(batch) for batch, _ in loop.calls) == 2 * window
    stage.transactions.pending = stage.transactions.pending[:window]
    stage.dispatch()
    assert stage.held.load.running == 3_000 - 2 * window


def test_a_partition_whose_progress_could_not_be_read_is_fetched_again_and_opened() -> None:
    intake, settler = Intake(), Settler()
    stage, _, _ = stage_with(intake, HandClock(), settler=settler)
    stage.assigned([("requests", 1)])
    new = stage.held.partitions["requests", 1]
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
    new = stage.held.partitions["requests", 1]
    new.paused, intake.away = False, True
    stage.take([Record("requests", 1, 0, b"")], [])
    intake.away = False
    # This record was fetched before the pause took effect.
    stage.take([Record("requests", 1, 1, b"")], [("requests", 1, 2)])
    assert (new.phase, new.rewind_to, new.ledger.base, new.ledger.next_offset) == (Phase.OPEN, 0, 0, 0)


def test_a_partition_starts_over_if_kafka_has_undone_confirmed_progress() -> None:
    intake, settler = Intake(), Settler()
    stage, _, partition = stage_with(intake, HandClock(), settler=settler)
    stage.take([Record("requests", 0, offset, b"") for offset in range(4)], [])
    partition.settle([0, 1, 3], partition.progress([0, 1, 3]))
    intake.progress = Progress(2, 0b10)
    reread(stage, settler)
    assert partition.owned
    assert partition.ledger.taken == {2}
    intake.progress = Progress(1, open=True, suspects={2: Suspect(running=True)})
    reread(stage, settler)
    anew = stage.held.partitions[partition.id]
    assert (partition.phase, anew.phase) == (Phase.GONE, Phase.ASSIGNED)
    for _ in range(2):
        stage.regulate()
    assert (intake.paused, intake.resumed) == ([anew.id], [(*anew.id, 1)])
    stage.take([Record("requests", 0, offset, b"") for offset in range(1, 4)], [])
    assert (anew.phase, anew.ledger.taken) == (Phase.OPEN, frozenset({1, 2, 3}))
    assert (anew.careful_records, anew.suspects) == (0, {})  # no process died, so no record is suspected


def test_a_gap_that_is_seen_while_a_transaction_is_under_way_is_committed_by_a_later_one() -> None:
    stage, _, partition = stage_with(Intake(), HandClock())
    stage.take([Record("requests", 0, 0, b"")], [])
    on_its_way = partition.progress([0])
    stage.take([], [("requests", 0, 3)])
    partition.settle([0], on_its_way)
    assert (partition.ledger.base, partition.ledger.gaps_unsettled) == (3, True)
    partition.settle([], partition.progress([]))
    assert not partition.ledger.gaps_unsettled


def test_a_leaving_partition_is_dropped_if_its_confirmed_progress_is_undone() -> None:
    settler = Settler()
    stage, _, partition = stage_with(Intake(), HandClock(), settler=settler)
    stage.take([Record("requests", 0, 0, b"")], [])
    partition.settle([0], partition.progress([0]))
    partition.close()
    reread(stage, settler)
    assert (partition.phase, stage.held.partitions) == (Phase.GONE, {})


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
    assert list(stage.held.partitions) == [("requests", 1)]
    stage.stop()
    assert stage.stopping is not None
    assert stage.stopping.remaining == 30.0


class Tenants(OneParty):
    """A sharing between the tenants in the records' headers, each with an estimated cost of 10."""

    later_share = 0.1

    def party(self, headers: Headers | None) -> bytes:
        return dict(headers or ())["tenant"] or b""

    def cost(self, record: Record) -> float:
        return 10.0


def test_a_tenant_whose_records_cost_more_than_estimated_waits_for_the_others() -> None:
    stage, loop, partition = stage_with(Intake(), HandClock(), sharing=Tenants())
    dear, cheap = [("tenant", b"dear")], [("tenant", b"cheap")]
    stage.take([Record("requests", 0, offset, b"", headers=dear if offset % 2 else cheap) for offset in range(60)], [])
    stage.dispatch()
    ((batch, _),) = loop.calls
    assert [record.offset for _, record in batch] == [*range(10)]
    for _, record in batch:
        record.spent = 50.0 if record.offset % 2 else 10.0
        stage.transactions.completions.put(Handled(partition, record, (), 0.0))
    stage.proxy.runner.begun += len(batch)
    stage.collect()
    stage.dispatch()
    assert [record.offset % 2 for _, record in loop.calls[1][0]] == [0] * 10
