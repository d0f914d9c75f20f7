"""A lone tenant floods an engine of any pace; a whole stage goes through its rounds, without Kafka."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from tests.drawn import drawn
from tests.unit.one_party import OneParty
from workers.stage.batch import Batch
from workers.stage.dispatching import MOST_DEFERRED
from workers.stage.intake import Committed, Contact, PartitionId
from workers.stage.partition import Partition
from workers.stage.record import Failure, Output, Record
from workers.stage.runner import Handled, Runner
from workers.stage.settings import StageSettings
from workers.stage.settler_state import SettlerState
from workers.stage.stage import Stage
from workers.stage.window import Limits

JOBS = 3_000
"""Jobs in each partition: six times the number that may be parked."""
PARTITIONS = 2
MORE_THAN_ARE_PARKED = 5_000
FETCHED = 400
"""Records of one fetch from a partition."""


class Handler:
    """A handler that is never called."""

    async def handle(self, record: Record) -> Sequence[Output]:
        raise AssertionError(record)

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        raise AssertionError(failure)


class Engine:
    """A pace with as much room as the test sets."""

    def __init__(self) -> None:
        self.free = 0

    def room(self) -> int:
        return self.free

    def due_ms(self, record: Record) -> int | None:
        return None

    @property
    def paced(self) -> bool:
        return False


class Log:
    """An intake over partitions with JOBS records each, which pauses and seeks on request."""

    def __init__(self, clock: HandClock) -> None:
        self._clock = clock
        self._positions = {("requests", number): 0 for number in range(PARTITIONS)}
        self._fetched: set[PartitionId] = set(self._positions)

    def consume(self, limit: int, timeout_seconds: float) -> tuple[list[Record], list[tuple[str, int, int]]]:
        self._clock.now += timeout_seconds
        records = []
        for place in sorted(self._fetched):
            start = self._positions[place]
            self._positions[place] = min(JOBS, start + min(limit, FETCHED))
            records += [Record(*place, offset, b"") for offset in range(start, self._positions[place])]
        return records, []

    def flow(self, pause: Sequence[PartitionId], resume: Sequence[tuple[str, int, int | None]]) -> bool:
        self._fetched.difference_update(pause)
        for topic, number, offset in resume:
            self._fetched.add((topic, number))
            if offset is not None:
                self._positions[topic, number] = offset
        return True

    def committed(self, partitions: Sequence[PartitionId], timeout_seconds: float) -> Committed:
        return dict.fromkeys(partitions)

    def watermarks(self, partition: PartitionId, *, cached: bool) -> tuple[int, int] | None:
        return None

    def contact(self) -> Contact:
        return Contact(member=True, silent_seconds=0.0)


class Settler:
    """A settler whose commit of a batch has ended at the next call; while `stuck`, the settler commits no batch."""

    state = SettlerState.READY
    stuck = False
    resting = False
    failures = 0
    offsets_swept = True
    _batch: Batch | None = None

    def listen(self) -> None:
        """Do nothing: no event has come."""

    def settle(self, batch: Batch) -> None:
        batch.progress = {partition: partition.progress(offsets) for partition, offsets in batch.offsets.items()}
        self._batch, self.state = batch, SettlerState.SETTLING

    def settled(self) -> Batch | None:
        if self.stuck:
            return None
        self.state = SettlerState.READY
        return self._batch


class Loop:
    """A loop that completes started and deferred records at once. A `busy` loop completes no deferred record."""

    busy = False

    def __init__(self) -> None:
        self.done: list[tuple[int, int]] = []
        self.deferred: list[tuple[int, int]] = []
        self.stage: Stage | None = None

    def call_soon_threadsafe(self, call: Callable[..., None], *args: Any) -> None:
        assert self.stage is not None
        batch: list[tuple[Partition, Record]] = args[0]
        deferred = call == self.stage.proxy.runner.defer
        if deferred and self.busy:
            return
        if deferred:
            self.stage.proxy.runner.deferred += len(batch)
        else:
            self.stage.proxy.runner.begun += len(batch)
        ended = self.deferred if deferred else self.done
        ended += [(record.partition, record.offset) for _, record in batch]
        for partition, record in batch:
            self.stage.transactions.completions.put(Handled(partition, record, (), 0.0, deferred=deferred))


class Flood:
    """A stage with a single tenant, who has JOBS jobs in each partition."""

    def __init__(self) -> None:
        self.clock, self.loop, self.engine = HandClock(), Loop(), Engine()
        log: Any = Log(self.clock)
        self.settler = Settler()
        settler: Any = self.settler
        settings = StageSettings("requests", Limits(records=512))
        self.stage = Stage(settings, Handler(), log, settler, self.clock, Metrics(), self.engine, OneParty())
        told: Any = self.loop
        self.stage.proxy.loop, self.loop.stage = told, self.stage
        assert isinstance(self.stage.proxy.runner, Runner)
        self.stage.assigned([("requests", number) for number in range(PARTITIONS)])

    def run(self, rounds: int, free: int) -> None:
        """Run some rounds while the engine has room for `free` jobs in each."""
        self.engine.free = free
        for _ in range(rounds):
            self.stage.round()
            self.clock.now += 0.01


EACH = [(number, offset) for number in range(PARTITIONS) for offset in range(JOBS)]
PACES = st.lists(
    st.tuples(st.integers(1, 200), st.sampled_from([0, 0, 1, 64, MORE_THAN_ARE_PARKED])), min_size=1, max_size=12
)
"""Pairs: a number of rounds, and the number of jobs that the engine takes in each of these rounds."""


@settings(
    max_examples=drawn(20), deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)  # `Phase.shrink` is left out, because it would take too long
@given(PACES)
def test_each_job_is_handled_or_deferred_once_whatever_the_engines_pace(paces: list[tuple[int, int]]) -> None:
    flood = Flood()
    for rounds, free in [(150, 0), *paces, (400, MORE_THAN_ARE_PARKED)]:
        flood.run(rounds, free)
    assert sorted([*flood.loop.done, *flood.loop.deferred]) == EACH


def test_a_flood_before_a_slow_engine_is_read_to_its_end_at_once() -> None:
    flood = Flood()
    flood.run(200, 1)
    assert len(flood.loop.deferred) == len(EACH) - len(flood.loop.done) - flood.stage.dispatching.window.parked
    assert all(partition.ledger.next_offset == JOBS for partition in flood.stage.held.partitions.values())
    assert min(flood.loop.deferred) > max(each for each in flood.loop.done if each[0] == 0)


def test_a_flood_is_not_deferred_before_a_fast_engine_nor_while_the_engine_is_away() -> None:
    for free in (256, 0):
        flood = Flood()
        flood.run(400, free)
        assert flood.loop.deferred == []


def test_nothing_is_fetched_and_no_more_is_deferred_until_the_loop_has_deferred_the_last_surplus() -> None:
    flood = Flood()
    flood.run(200, 1)
    assert len(flood.loop.deferred) > MOST_DEFERRED
    flood = Flood()
    flood.loop.busy = True
    flood.run(200, 1)
    fetched = sum(partition.ledger.next_offset for partition in flood.stage.held.partitions.values())
    parked = flood.stage.dispatching.window.parked
    assert 0 < fetched - len(flood.loop.done) - parked <= MOST_DEFERRED
    assert parked <= flood.stage.dispatching.window.limits.records + PARTITIONS * FETCHED
    handed_over = len(flood.loop.done)
    flood.run(100, 1)
    assert len(flood.loop.done) == handed_over + 100, "the engine goes on meanwhile"


def test_deferred_jobs_that_wait_to_be_settled_keep_no_job_from_the_engine() -> None:
    flood = Flood()
    while not flood.loop.deferred:
        flood.run(1, 1)
    flood.settler.stuck, handed_over = True, len(flood.loop.done)
    flood.run(50, 1)
    assert len(flood.stage.transactions.pending) > 3 * flood.stage.dispatching.window.limits.records
    assert len(flood.loop.done) == handed_over + 50
