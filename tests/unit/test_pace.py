"""The number of jobs to hand over: for free places, for the engine's queue, and for enrichment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.admission import ENGINES, Simulation
from telemetry.hand_clock import HandClock
from workers.engines.base import EngineLoad
from workers.inference.pace import EnginePace, EnrichmentLead, Refill


def test_enrichment_has_as_many_jobs_as_littles_law_wants() -> None:
    clock = HandClock()
    lead = EnrichmentLead(clock, 0.25, memory_seconds=2.0)
    assert lead.jobs() == 0
    for _ in range(60):
        for _ in range(10):  # forty a second, each after 3 s
            lead.answered(3.0)
        clock.sleep(0.25)
        lead.jobs()
    assert lead.jobs() == 120
    for _ in range(60):
        lead.answered(0.0)
        clock.sleep(0.25)
        lead.jobs()
    assert lead.jobs() == 0


def test_a_batch_that_ends_at_once_moves_it_by_its_share() -> None:
    clock = HandClock()
    lead = EnrichmentLead(clock, 0.25, memory_seconds=5.0)
    lead.answered(100.0)
    clock.sleep(0.25)
    assert 15 < lead.jobs() < 25


def looked(refill: Refill, clock: HandClock, *steps: tuple[int, float]) -> int:
    """Give answers and let seconds pass, step by step; return the last look."""
    seen = 0
    for count, seconds in steps:
        for _ in range(count):
            refill.answered()
        clock.sleep(seconds)
        seen = refill.look()
    return seen


def test_a_refill_takes_two_intervals_between_looks() -> None:
    clock = HandClock()
    refill = Refill(clock, 1.0, 30.0)
    assert looked(refill, clock, *[(10, 0.05)] * 200) == 20


def test_a_long_interval_counts_for_thirty_seconds() -> None:
    clock = HandClock()
    refill = Refill(clock, 1.0, 30.0)
    assert looked(refill, clock, (100, 0.5), *[(10, 0.05)] * 200) == 110
    assert looked(refill, clock, *[(10, 0.05)] * 380) == 110
    assert looked(refill, clock, *[(10, 0.05)] * 40) == 20


def test_answers_that_come_at_once_count_at_their_mean_rate() -> None:
    clock = HandClock()
    refill = Refill(clock, 1.0, 30.0)
    for _ in range(10):
        assert looked(refill, clock, (64, 0.02), *[(0, 0.02)] * 99) < 8


def test_a_second_look_at_the_same_time_changes_nothing() -> None:
    clock = HandClock()
    refill = Refill(clock, 1.0, 30.0)
    seen = looked(refill, clock, *[(10, 0.05)] * 200)
    assert (refill.look(), refill.look()) == (seen, seen)


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0, 100)), max_size=60))
def test_a_refill_never_has_more_answers_than_the_busiest_rate_in_the_longest_delay(
    steps: list[tuple[int, float]],
) -> None:
    clock = HandClock()
    refill = Refill(clock, 1.0, 30.0)
    rates = [count / seconds for count, seconds in steps if seconds > 1e-6]
    seen = looked(refill, clock, *((count, seconds) for count, seconds in steps if seconds > 1e-6))
    assert 0 <= seen <= max(rates, default=0) * 201 + 1


def test_free_places_are_filled_at_once_and_an_idle_engine_has_no_queue() -> None:
    pace = EnginePace(lambda: EngineLoad(running=0, waiting=0, free=64), None, HandClock())
    assert pace.room() == 64
    with pace.preparing():
        assert pace.room() == 63


def test_a_slow_engine_with_few_places_has_no_more_waiting_than_running() -> None:
    pace = EnginePace(lambda: EngineLoad(running=4, waiting=0, free=0), None, HandClock())
    assert pace.room() == 4


def test_a_fixed_number_waits_whatever_the_engine_answers() -> None:
    pace = EnginePace(lambda: EngineLoad(running=64, waiting=3, free=0), 10, HandClock())
    for _ in range(40):
        pace.answered(0.0)
    assert pace.room() == 7


@pytest.mark.parametrize("engine", ENGINES)
def test_the_adaptive_queue_keeps_a_simulated_engine_as_busy_as_a_long_fixed_one(engine: str) -> None:
    adaptive, long = (Simulation(engine, fixed).run(60.0, 20.0) for fixed in (None, 256))
    assert adaptive.busy >= 0.97 * long.busy
    assert adaptive.wait_seconds < 0.6 * long.wait_seconds
