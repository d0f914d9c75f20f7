"""How many answers there are in a period."""

from __future__ import annotations

from clocks import HandClock

from workers.pace import AnswerRate


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
