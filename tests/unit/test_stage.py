"""The rounds of the Kafka thread, one step at a time: no Kafka, and an event loop that never gets its turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from telemetry.metrics import Metrics
from tests.clocks import HandClock
from workers.stage.intake import PartitionId
from workers.stage.ledger import Progress
from workers.stage.partition import Partition
from workers.stage.record import Failure, Output, Record
from workers.stage.runner import Completion
from workers.stage.settle import State
from workers.stage.stage import MAX_BATCH_RECORDS, Stage, StageSettings


class Handler:
    """Is never called."""

    async def handle(self, record: Record) -> Sequence[Output]:
        raise AssertionError(record)

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        raise AssertionError(failure)


class RoomForTen:
    """A pace whose handler has begun nothing, so that it has room for as many as ever."""

    def room(self) -> int:
        return 10

    def due_ms(self, record: Record) -> int | None:
        return None


class Intake:
    """Does what it is told, and knows of no end."""

    def __init__(self) -> None:
        self.paused: list[PartitionId] = []

    def flow(self, pause: Sequence[PartitionId], resume: Sequence[tuple[str, int, int | None]]) -> bool:
        self.paused += pause
        return True

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        return None


class Settler:
    """Has nothing to do."""

    state = State.READY
    resting = True
    failures = 0


class BusyLoop:
    """Takes calls and makes none."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def call_soon_threadsafe(self, call: Callable[..., None], *args: Any) -> None:
        self.calls.append(args)


def stage_with(
    intake: Intake, clock: HandClock, parked: int = 0, settler: Any = None
) -> tuple[Stage, BusyLoop, Partition]:
    """A stage that has one open partition, which is fetched from."""
    loop: Any = BusyLoop()
    source: Any = intake
    sink: Any = settler or Settler()
    stage = Stage(StageSettings("requests"), Handler(), source, sink, clock, Metrics(), RoomForTen())
    stage._loop = loop
    stage.assigned([("requests", 0)])
    (partition,) = stage._partitions.values()
    partition.open(Progress(0), 0)
    partition.open_committed, partition.paused = True, False
    stage._take([Record("requests", 0, offset, b"") for offset in range(parked)], [])
    return stage, loop, partition


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
    stage._pending = [Completion(partition, record, [], 0.0) for record in records]
    sizes = []
    for settler.failures in (0, 1, 2, 10, 0):
        sizes.append(len(stage._compose().offsets[partition]))
    assert sizes == [5000, 2500, 1250, 4, 5000]
