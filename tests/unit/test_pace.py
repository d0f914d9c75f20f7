"""The number of answers in a period, and the number of jobs in enrichment that they need."""

from __future__ import annotations

from telemetry.hand_clock import HandClock
from workers.inference.pace import AnswerRate, EnrichmentLead


def answer(rate: AnswerRate, count: int) -> None:
    for _ in range(count):
        rate.answered()


def test_a_period_counts_once_it_is_over() -> None:
    clock = HandClock()
    rate = AnswerRate(clock, 0.25)
    answer(rate, 40)
    assert rate.in_a_period() == 0
    clock.sleep(0.25)
    assert rate.in_a_period() == 40
    answer(rate, 10)
    assert rate.in_a_period() == 40
    clock.sleep(0.25)
    assert rate.in_a_period() == 10


def test_a_period_that_is_asked_for_late_counts_for_its_share() -> None:
    clock = HandClock()
    rate = AnswerRate(clock, 0.25)
    answer(rate, 400)
    clock.sleep(1.0)
    assert rate.in_a_period() == 100


def test_silence_brings_the_rate_back_to_nothing() -> None:
    clock = HandClock()
    rate = AnswerRate(clock, 0.25)
    answer(rate, 400)
    clock.sleep(0.25)
    assert rate.in_a_period() == 400
    clock.sleep(0.25)
    assert rate.in_a_period() == 0


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
