"""A stage without Kafka, which a test runs step by step, beside an event loop that never runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException

from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from workers.stage.isolation import Cohort
from workers.stage.partition import Partition
from workers.stage.progress import Progress
from workers.stage.record import Failure, Output, Record
from workers.stage.runner import Handled
from workers.stage.settings import StageSettings
from workers.stage.settler import SettlerState
from workers.stage.sharing import Place, Sharing
from workers.stage.source import Committed, Contact, PartitionId
from workers.stage.stage import Stage
from workers.stage.topic_ids import Identities


class Handler:
    """A handler that is never called."""

    async def handle(self, record: Record) -> Sequence[Output]:
        raise AssertionError(record)

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        raise AssertionError(failure)


class Desk:
    """A pace whose room is constant, because the handler of this stage begins no record.

    Unless `due_at_ms` is set, no record is early.
    """

    def __init__(self, room: int = 10) -> None:
        self._room = room
        self.due_at_ms: int | None = None

    def room(self) -> int:
        return self._room

    def due_ms(self, record: Record) -> int | None:
        return self.due_at_ms

    @property
    def paced(self) -> bool:
        return True


class Intake:
    """An intake that records its calls and knows no partition's end."""

    def __init__(self) -> None:
        self.paused: list[PartitionId] = []
        self.resumed: list[tuple[str, int, int | None]] = []
        self.assigned_again: list[PartitionId] = []
        self.away = False
        self.progress: Progress | None = None

    def flow(self, pause: Sequence[PartitionId], resume: Sequence[tuple[str, int, int | None]]) -> bool:
        self.paused += pause
        self.resumed += resume
        return True

    def assign_again(self, partitions: Sequence[PartitionId]) -> None:
        self.assigned_again += partitions

    def committed(self, partitions: Sequence[PartitionId], timeout_seconds: float) -> Committed:
        if self.away:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        return dict.fromkeys(partitions, self.progress)

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        return None

    def contact(self) -> Contact:
        return Contact(member=True, silent_seconds=0.0)


class Settler:
    """A settler that is always ready and has nothing to do."""

    state = SettlerState.READY
    resting = True
    failures = 0
    offsets_swept = True

    def listen(self) -> None:
        """Do nothing: no event has come."""

    def sweep_again(self) -> None:
        """Begin to sweep."""
        self.state = SettlerState.SWEEPING

    def carries(self, partition: Partition) -> bool:
        return False

    def reread(self) -> None:
        """Become ready."""
        self.state = SettlerState.READY


class BusyLoop:
    """An event loop that records calls and makes none."""

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
    """A stage without partitions."""
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
    """A stage with one open partition that is being fetched. `parts` are arguments of `bare_stage`."""
    stage, loop = bare_stage(intake, clock, **parts)
    stage.assigned([("requests", 0)])
    (partition,) = stage.partitions.held.values()
    partition.open(Progress(0), 0)
    partition.open_committed, partition.paused = True, False
    stage.take(records(*range(parked)), [])
    return stage, loop, partition


def records(*offsets: int) -> list[Record]:
    """Records without a value at these offsets of the partition of `stage_with`."""
    return [Record("requests", 0, offset, b"") for offset in offsets]


def offsets_of(cohort: Cohort | None) -> list[int]:
    """The offsets of a cohort's records."""
    assert cohort is not None
    return [record.offset for _, record in cohort.members]


def handled(stage: Stage, partition: Partition, *offsets: int, outputs: Sequence[Output] | None = ()) -> None:
    """Queue the handler's completions for these offsets; None as `outputs` means that the engine died at them."""
    for record in records(*offsets):
        stage.transactions.completions.put([Handled(partition, record, outputs, 0.0)])


def ended(stage: Stage, partition: Partition, *offsets: int, outputs: Sequence[Output] = ()) -> None:
    """Queue completions for these offsets, and let the stage collect them."""
    handled(stage, partition, *offsets, outputs=outputs)
    stage.collect()


def reread(stage: Stage, settler: Settler) -> None:
    """Give the settler a new producer, and let the stage reread the outcome of the old one's last transaction."""
    settler.state, settler.resting = SettlerState.REREADING, False
    stage.settle(0)
    settler.resting = True


class OneParty:
    """All records belong to one party and to its first place, and cost the same; none may be deferred."""

    later_share = 0.5

    def assess(self, record: Record) -> None:
        record.party = b""

    def place(self, topic: str) -> Place:
        return Place.FIRST

    def defer(self, record: Record) -> Sequence[Output]:
        raise AssertionError(record)
