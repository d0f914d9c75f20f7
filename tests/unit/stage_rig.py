"""A stage without Kafka, whose steps a test makes one at a time, beside an event loop that never gets its turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from workers.stage.intake import Committed, PartitionId
from workers.stage.partition import Partition
from workers.stage.progress import Progress
from workers.stage.record import Failure, Output, Record
from workers.stage.runner import Handled
from workers.stage.settings import StageSettings
from workers.stage.settler_state import SettlerState
from workers.stage.sharing import Sharing
from workers.stage.stage import Stage
from workers.stage.topic_ids import Identities


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


def bare_stage(
    intake: Intake,
    clock: HandClock,
    settler: Any = None,
    pace: Desk | None = None,
    sharing: Sharing | None = None,
    metrics: Metrics | None = None,
    identities: Identities | None = None,
    **settings: Any,
) -> tuple[Stage, BusyLoop]:
    """A stage that has no partition."""
    loop: Any = BusyLoop()
    source: Any = intake
    sink: Any = settler or Settler()
    stage = Stage(
        StageSettings("requests", **settings),
        Handler(),
        source,
        sink,
        clock,
        metrics or Metrics(),
        pace or Desk(),
        sharing,
        identities=identities,
    )
    stage.proxy.loop = loop
    return stage, loop


def stage_with(intake: Intake, clock: HandClock, parked: int = 0, **parts: Any) -> tuple[Stage, BusyLoop, Partition]:
    """A stage that has one open partition, which is fetched from. `parts`: of `bare_stage`."""
    stage, loop = bare_stage(intake, clock, **parts)
    stage.assigned([("requests", 0)])
    (partition,) = stage.held.partitions.values()
    partition.open(Progress(0), 0)
    partition.open_committed, partition.paused = True, False
    stage.take([Record("requests", 0, offset, b"") for offset in range(parked)], [])
    return stage, loop, partition


def handled(stage: Stage, partition: Partition, *offsets: int, outputs: Sequence[Output] | None = ()) -> None:
    """The handler has returned for these. `outputs`: None where it died at them."""
    for offset in offsets:
        record = Record("requests", 0, offset, b"")
        stage.transactions.completions.put(Handled(partition, record, outputs, 0.0))


def ended(stage: Stage, partition: Partition, *offsets: int, outputs: Sequence[Output] = ()) -> None:
    """The handler has returned for these, and the stage has heard of it."""
    handled(stage, partition, *offsets, outputs=outputs)
    stage.collect()


def reread(stage: Stage, settler: Settler) -> None:
    """The settler has a new producer, and the stage finds out what the old one's last transaction did."""
    settler.state, settler.resting = SettlerState.REREADING, False
    stage.settle(0)
    settler.resting = True
