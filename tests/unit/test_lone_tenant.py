"""A lone tenant is never deferred: a whole stage's rounds without Kafka, beside an engine of any pace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from telemetry.hand_clock import HandClock
from telemetry.metrics import Metrics
from workers.stage.batch import Batch
from workers.stage.intake import Committed, Contact, PartitionId
from workers.stage.lookahead import Lookahead
from workers.stage.partition import Partition
from workers.stage.record import Failure, Headers, Output, Record
from workers.stage.runner import Handled, Runner
from workers.stage.settings import StageSettings
from workers.stage.settler_state import SettlerState
from workers.stage.sharing import Party
from workers.stage.stage import Stage
from workers.stage.window import Limits

TENANT = b"acme"
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


class Tenants:
    """Fairness by which all records are one tenant's, with an empty later place."""

    later_share = 0.2

    def party(self, headers: Headers | None) -> bytes:
        return TENANT

    def is_later(self, topic: str) -> bool:
        return False

    def defer(self, record: Record) -> Sequence[Output]:
        raise AssertionError(record)


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
    """A settler that has committed each batch at the next call."""

    state = SettlerState.READY
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
        self.state = SettlerState.READY
        return self._batch


class Scout:
    """A scout that meets another party in each record, if it looks for parties other than the tenant."""

    def __init__(self) -> None:
        self.aims = 0
        self._met: dict[PartitionId, int] = {}

    def aim(self, places: Mapping[PartitionId, int], familiar: Party) -> None:
        self.aims += 1
        self._met = {} if familiar == TENANT else dict.fromkeys(places, JOBS - 1)

    def look(self) -> dict[PartitionId, int]:
        return self._met

    def rest(self) -> None:
        self._met = {}

    def forget(self) -> None:
        self._met = {}


class Loop:
    """A loop that completes started records at once, and counts deferred ones."""

    def __init__(self) -> None:
        self.done: list[tuple[int, int]] = []
        self.deferred = 0
        self.stage: Stage | None = None

    def call_soon_threadsafe(self, call: Callable[..., None], *args: Any) -> None:
        assert self.stage is not None
        if call == self.stage.proxy.runner.defer:
            self.deferred += len(args[0])
        elif call == self.stage.proxy.runner.start:
            batch: list[tuple[Partition, Record]] = args[0]
            self.stage.proxy.runner.begun += len(batch)
            self.done += [(record.partition, record.offset) for _, record in batch]
            for partition, record in batch:
                self.stage.transactions.completions.put(Handled(partition, record, (), 0.0))


PACES = st.lists(
    st.tuples(st.integers(1, 200), st.sampled_from([0, 0, 1, 64, MORE_THAN_ARE_PARKED])), min_size=1, max_size=12
)
"""Pairs: for that number of rounds the engine takes that number of jobs."""


@settings(max_examples=20, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # shrinking takes long
@given(PACES)
def test_a_tenant_alone_is_never_deferred_whatever_the_engines_pace(paces: list[tuple[int, int]]) -> None:
    clock, loop, scout, engine = HandClock(), Loop(), Scout(), Engine()
    log: Any = Log(clock)
    settler: Any = Settler()
    looking: Any = scout
    stage = Stage(
        StageSettings("requests", Limits(records=512)),
        Handler(),
        log,
        settler,
        clock,
        Metrics(),
        engine,
        Tenants(),
        Lookahead(looking, clock),
    )
    told: Any = loop
    stage.proxy.loop, loop.stage = told, stage
    assert isinstance(stage.proxy.runner, Runner)
    stage.assigned([("requests", number) for number in range(PARTITIONS)])
    for rounds, free in [(150, 0), *paces, (400, MORE_THAN_ARE_PARKED)]:
        engine.free = free
        for _ in range(rounds):
            stage.round()
            clock.now += 0.01
    assert loop.deferred == 0
    assert scout.aims > 0, "the lot was never full for long enough"
    assert sorted(loop.done) == [(number, offset) for number in range(PARTITIONS) for offset in range(JOBS)]
