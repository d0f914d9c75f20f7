"""The number of jobs that the stage hands over: for free places, for the engine's queue, and for enrichment."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.admission import ENGINES, Simulation
from telemetry.hand_clock import HandClock
from workers.engines.base import EngineLoad
from workers.inference.pace import IDLE_SHARE, EnginePace, EnrichmentLead, Refill


def test_enrichment_has_as_many_jobs_as_littles_law_wants() -> None:
    clock = HandClock()
    lead = EnrichmentLead(clock, 0.25, memory_seconds=2.0)
    assert lead.jobs() == 0
    for _ in range(60):
        for _ in range(10):  # forty answers come in a second, each after 3 s of enrichment
            lead.answered(3.0)
        clock.sleep(0.25)
        lead.jobs()
    assert lead.jobs() == 120
    for _ in range(60):
        lead.answered(0.0)
        clock.sleep(0.25)
        lead.jobs()
    assert lead.jobs() == 0


def test_a_batch_that_ends_at_once_moves_the_number_by_its_share() -> None:
    clock = HandClock()
    lead = EnrichmentLead(clock, 0.25, memory_seconds=5.0)
    lead.answered(100.0)
    clock.sleep(0.25)
    assert 15 < lead.jobs() < 25


def looked(refill: Refill, clock: HandClock, *steps: tuple[int, float], running: int = 64) -> int:
    """Step by step, count answers and let seconds pass; return the number of jobs at the last look."""
    seen = 0
    for count, seconds in steps:
        for _ in range(count):
            refill.answered()
        clock.sleep(seconds)
        seen = refill.look(running)
    return seen


def refill_of(clock: HandClock) -> Refill:
    return Refill(clock, period_seconds=0.25, memory_seconds=30.0)


def test_the_queue_leaves_two_percent_of_the_places_idle_until_the_next_refill() -> None:
    clock = HandClock()
    assert looked(refill_of(clock), clock, *[(10, 0.05)] * 200, running=100) == 8
    assert looked(refill_of(clock), clock, *[(10, 0.05)] * 200, running=500) == 0


def test_a_long_interval_counts_for_thirty_seconds() -> None:
    clock = HandClock()
    refill = refill_of(clock)
    steady = [(8, 0.05)] * 200
    assert looked(refill, clock, *steady) == 7
    assert looked(refill, clock, (60, 1.0), *steady) > 20
    assert looked(refill, clock, *[(8, 0.05)] * 360) > 20
    assert looked(refill, clock, *[(8, 0.05)] * 60) == 7


def test_answers_that_come_at_once_need_a_longer_queue_than_the_same_number_one_by_one() -> None:
    clock = HandClock()
    assert looked(refill_of(clock), clock, *[(64, 0.025), *[(0, 0.025)] * 9] * 100) == 52
    assert looked(refill_of(clock), clock, *[(6, 0.025), (7, 0.025)] * 500) == 6


def test_an_engine_that_answers_all_its_requests_between_two_looks_gets_more_and_more() -> None:
    clock = HandClock()
    pace = EnginePace(lambda: EngineLoad(running=0, waiting=0, free=64), None, clock)
    for _ in range(100):
        for _ in range(pace.room()):
            pace.answered(0.0)
        clock.sleep(0.05)
    assert pace.room() > 1000


def test_a_second_look_at_the_same_time_changes_nothing_and_loses_no_answer() -> None:
    clock = HandClock()
    refill = refill_of(clock)
    seen = looked(refill, clock, *[(10, 0.05)] * 200)
    assert (refill.look(64), refill.look(64)) == (seen, seen)
    for _ in range(300):
        refill.answered()
    refill.look(64)
    assert looked(refill, clock, (0, 3.0)) > 30


@given(
    st.lists(st.tuples(st.integers(0, 500), st.floats(0.25, 0.5)), min_size=1, max_size=40),
    st.integers(0, 300),
)
@example([(79, 0.5), (79, 0.4481815346775352)], 0)
def test_the_queue_is_the_shortest_within_the_idle_share(steps: list[tuple[int, float]], running: int) -> None:
    clock = HandClock(0.0)
    seen = looked(refill_of(clock), clock, *steps, running=running)

    def idle(queue: int) -> float:
        return sum(max(0, count - queue) * seconds for count, seconds in steps)

    allowed = IDLE_SHARE * running * sum(seconds for _, seconds in steps)
    assert 0 <= seen <= max(count for count, _ in steps)
    assert idle(seen) <= allowed + 1e-6
    assert seen == 0 or idle(seen - 1) > allowed - 1e-6


def test_free_places_are_filled_at_once_and_an_idle_engine_has_no_queue() -> None:
    pace = EnginePace(lambda: EngineLoad(running=0, waiting=0, free=64), None, HandClock())
    assert pace.room() == 64
    with pace.preparing():
        assert pace.room() == 63


@pytest.mark.parametrize(("running", "waiting"), [(1, 1), (4, 1), (20, 3), (64, 8), (1000, 8)])
def test_an_eighth_of_the_running_jobs_waits_or_eight_if_that_is_less(running: int, waiting: int) -> None:
    pace = EnginePace(lambda: EngineLoad(running=running, waiting=0, free=0), None, HandClock())
    assert pace.room() == waiting


def test_a_fixed_number_waits_whatever_the_engine_answers() -> None:
    pace = EnginePace(lambda: EngineLoad(running=64, waiting=3, free=0), 10, HandClock())
    for _ in range(40):
        pace.answered(0.0)
    assert pace.room() == 7


@pytest.mark.parametrize("engine", ENGINES)
def test_the_adaptive_queue_keeps_a_simulated_engine_as_busy_as_a_long_fixed_one(engine: str) -> None:
    adaptive, long = (Simulation(engine, fixed).run(60.0, 20.0) for fixed in (None, 256))
    assert adaptive.busy >= 0.97 * long.busy
    assert adaptive.wait_seconds <= 0.15 * long.wait_seconds
