"""Fairness between tenants: costs of jobs, and a tenant that is alone."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from schemas.job import DEFAULT_TTL_SECONDS
from telemetry.hand_clock import HandClock
from tests.drawn import drawn
from tests.unit.echo_worker import assessed, record, working
from tests.unit.one_party import OneParty
from tests.unit.stage_rig import Desk, Intake, Settler, bare_stage
from tests.unit.test_fair_queue import always
from tests.unit.test_fair_queue import partition as a_partition
from workers.inference.tenants import BYTES_A_TOKEN, MOST_TENANTS, AnswerTokens
from workers.stage.dispatcher import MOST_DEFERRED
from workers.stage.fair_queue import OWN_BYTES, QUEUE_BYTES, FairQueue
from workers.stage.partition import Partition
from workers.stage.record import Record
from workers.stage.runner import Handled, Runner
from workers.stage.settler import Batch, SettlerState
from workers.stage.source import PartitionId
from workers.stage.stage import Stage
from workers.stage.window import Limits

# -- lone tenant -----------------------------------------------------------------------------------------------------
JOBS = 3_000
"""Jobs in each partition: six times the number that may be parked."""
PARTITIONS = 2
ROOM = 512
"""Number of records that fit into the queue."""
MORE_THAN_ARE_PARKED = 5_000
FETCHED = 400
"""Records of one fetch from a partition."""


class Engine(Desk):
    """A pace with as much room as the test sets."""

    free = 0

    def room(self) -> int:
        return self.free

    @property
    def paced(self) -> bool:
        return False


class Log(Intake):
    """An intake over partitions with JOBS records each, which pauses and seeks on request."""

    def __init__(self, clock: HandClock) -> None:
        super().__init__()
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


class Committing(Settler):
    """A settler whose commit of a batch has ended at the next call; while `stuck`, the settler commits no batch."""

    stuck = False
    resting = False
    _batch: Batch | None = None

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
        for where, taken in batch:
            self.stage.transactions.completions.put([Handled(where, taken, (), 0.0, deferred=deferred)])


class Flood:
    """A stage with a single tenant, who has JOBS jobs in each partition."""

    def __init__(self) -> None:
        self.clock, self.loop, self.engine, self.settler = HandClock(), Loop(), Engine(), Committing()
        limits = Limits(records=512, bytes=3 * ROOM * OWN_BYTES)
        log, sharing = Log(self.clock), OneParty()
        self.stage, _ = bare_stage(log, self.clock, self.settler, self.engine, sharing, limits=limits)
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
    assert len(flood.loop.deferred) == len(EACH) - len(flood.loop.done) - flood.stage.dispatcher.window.queued
    assert all(partition.ledger.next_offset == JOBS for partition in flood.stage.partitions.held.values())
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
    fetched = sum(partition.ledger.next_offset for partition in flood.stage.partitions.held.values())
    parked = flood.stage.dispatcher.window.queued
    assert 0 < fetched - len(flood.loop.done) - parked <= MOST_DEFERRED
    assert parked <= ROOM + PARTITIONS * FETCHED
    handed_over = len(flood.loop.done)
    flood.run(100, 1)
    assert len(flood.loop.done) == handed_over + 100, "the engine goes on meanwhile"


def test_deferred_jobs_that_wait_to_be_settled_keep_no_job_from_the_engine() -> None:
    flood = Flood()
    while not flood.loop.deferred:
        flood.run(1, 1)
    flood.settler.stuck, handed_over = True, len(flood.loop.done)
    flood.run(50, 1)
    assert len(flood.stage.transactions.pending) > 3 * flood.stage.dispatcher.window.limits.records
    assert len(flood.loop.done) == handed_over + 50


# -- token costs -----------------------------------------------------------------------------------------------------
ACME, GLOBEX = ("tenant", b"acme"), ("tenant", b"globex")


async def test_a_job_costs_the_tokens_of_its_prompt_and_its_tenants_mean_answer_and_then_its_real_ones() -> None:
    async with working() as worker:
        long, short = record({"prompt": "word " * 400}, ACME), record({"prompt": "word"}, GLOBEX)
        for job in (long, short):
            assert assessed(worker, job).cost == pytest.approx(len(job.value) / BYTES_A_TOKEN)
        for _ in range(100):
            await worker.outputs(long)
            await worker.outputs(short)
        assert long.spent == 800  # the echo engine answers with the 400 words of the question
        assert short.spent == 2
        assert assessed(worker, long).cost == pytest.approx(len(long.value) / BYTES_A_TOKEN + 400, rel=0.05)
        assert assessed(worker, short).cost == pytest.approx(len(short.value) / BYTES_A_TOKEN + 1, abs=5)


async def test_a_job_that_reaches_no_engine_costs_nothing() -> None:
    async with working() as worker:
        for job in (record(b"no job"), record({"prompt": "x", "model_id": "absent"}), record({"prompt": ""})):
            await worker.outputs(job)
            assert job.spent == 0


async def test_a_tenant_with_twice_the_weight_pays_half() -> None:
    async with working(tenant_weights={"acme": 2.0}) as worker:
        of_acme, of_globex = record({"prompt": "a b c"}, ACME), record({"prompt": "a b c"}, GLOBEX)
        assert assessed(worker, of_acme).cost * 2 == assessed(worker, of_globex).cost
        for job in (of_acme, of_globex):
            await worker.outputs(job)
        assert (of_acme.spent, of_globex.spent) == (3, 6)


async def test_a_job_with_an_earlier_deadline_is_more_urgent() -> None:
    async with working() as worker:
        usual = round(1000 * DEFAULT_TTL_SECONDS)
        for job, left_ms in (
            (record({"prompt": "x"}), usual),
            (record({"prompt": "x", "ttl_seconds": 60}), 60_000),
            (record({"prompt": 'Say "ttl_seconds": 5'}), usual),
            (record({"prompt": "x"}, ("deadline", b"soon")), usual),
        ):
            assert assessed(worker, job).urgency - job.timestamp_ms == left_ms
        stated = record({"prompt": "x"}, ("deadline", b"1700000000000"))
        assert assessed(worker, stated).urgency == 1_700_000_000_000


async def test_a_job_with_a_higher_priority_is_more_urgent_whatever_its_deadline() -> None:
    async with working() as worker:
        jobs = [
            record({"prompt": "x", "priority": 9}, ("deadline", b"999999999999999")),
            record({"prompt": "x"}, ("priority", b"5"), ("deadline", b"999999999999999")),
            record({"prompt": "x", "priority": 1}),
            record({"prompt": "x", "ttl_seconds": 1}),
            record({"prompt": 'Say "priority": 9'}),
            record({"prompt": "x", "priority": 9}, ("priority", b"none"), ("deadline", b"999999999999999")),
        ]
        assert (ranks := [assessed(worker, job).urgency for job in jobs]) == sorted(ranks)
        assert ranks[2] < ranks[3]


@given(st.lists(st.tuples(st.binary(max_size=3), st.integers(0, 2**31 - 1)), max_size=60))
def test_a_mean_lies_between_zero_and_its_answers(answers: list[tuple[bytes, int]]) -> None:
    known = AnswerTokens()
    for tenant, tokens in answers:
        known.add(tenant, tokens)
    lengths = [0.0, *(float(tokens) for _, tokens in answers)]
    for tenant in {*(tenant for tenant, _ in answers), b"other"}:
        assert min(lengths) * 0.999 <= known.mean(tenant) <= max(lengths) * 1.001


def test_only_the_last_tenants_are_remembered() -> None:
    known = AnswerTokens()
    known.add(b"first", 1_000_000)
    for number in range(MOST_TENANTS - 1):
        known.add(b"%d" % number, 0)
    assert known.mean(b"first") > 1000 * known.mean(b"other")
    known.add(b"last", 0)
    assert known.mean(b"first") == known.mean(b"other")


async def test_a_tenant_that_comes_during_a_workers_first_answers_gets_its_share_of_the_freed_places() -> None:
    where = a_partition()
    flood, few = record({"prompt": "word"}, ACME), record({"prompt": "word"}, GLOBEX)
    async with working() as worker:
        lot = FairQueue(QUEUE_BYTES, 512)

        def park(sent: Record) -> None:
            lot.add(where, replace(assessed(worker, sent), offset=next(offsets)), sent.party)

        offsets = count()
        for _ in range(300):
            park(flood)
        running = deque(lot.draw(64, always))
        for _ in range(128):
            _, ended = running.popleft()
            await worker.outputs(ended)
            lot.correct(ended.party, (ended.spent or 0) - ended.cost)
            park(few)
            running += lot.draw(1, always)
    begun_later = Counter(one.party for _, one in running)
    assert begun_later[b"globex"] >= 16
