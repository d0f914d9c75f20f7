"""A breaker opens, stays open for a time and closes: tested as a table of attempts."""

from __future__ import annotations

import pytest

from workers.delivery.breaker import Breaker, BreakerState, OriginSignal, asked_to_wait, signal_of
from workers.delivery.post import Delivered, FailedDelivery, FailureReason
from workers.delivery.settings import DeliverySettings

SETTINGS = DeliverySettings(
    breaker_failures=3, breaker_failure_share=0.5, breaker_open_seconds=5, breaker_longest_seconds=18
)


def breaker_that_saw(text: str, now: float = 0.0) -> Breaker:
    """A breaker after these attempts: `o` is an answer, `x` a failure, and `-` counts as neither."""
    breaker = Breaker(SETTINGS)
    verdicts = {"o": OriginSignal.ANSWERS, "x": OriginSignal.FAILS, "-": OriginSignal.NOTHING}
    for letter in text:
        breaker.judge(verdicts[letter], now, probe=False)
    return breaker


def probe(breaker: Breaker, now: float, verdict: OriginSignal) -> None:
    assert breaker.take_probe(now)
    breaker.judge(verdict, now, probe=True)


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        ("", BreakerState.CLOSED),
        ("xx", BreakerState.CLOSED),
        ("xxx", BreakerState.OPEN),
        ("xxoxx", BreakerState.CLOSED),
        ("xx-x", BreakerState.OPEN),
        ("xx" + "-" * 99, BreakerState.CLOSED),
        ("xxo" * 10, BreakerState.CLOSED),  # 20 of 30 attempts fail, but the share counts only from 64 attempts on
        ("ox" * 31, BreakerState.CLOSED),
        ("ox" * 32, BreakerState.OPEN),
        ("oox" * 40, BreakerState.CLOSED),
        ("o" * 500 + "xx", BreakerState.CLOSED),
        ("o" * 500 + "ox" * 32, BreakerState.OPEN),
    ],
)
def test_failures_in_a_row_or_too_large_a_share_of_the_last_64_open_the_breaker(seen: str, state: BreakerState) -> None:
    assert breaker_that_saw(seen).state(0.0) is state


def test_an_open_breaker_allows_no_attempt_until_its_time_is_over_and_is_then_half_open() -> None:
    breaker = breaker_that_saw("xxx", now=100.0)
    assert (breaker.state(104.9), breaker.seconds_left(102.0)) == (BreakerState.OPEN, 3.0)
    assert not breaker.take_probe(104.9)
    assert (breaker.state(105.0), breaker.seconds_left(105.0)) == (BreakerState.HALF_OPEN, 0.0)


def test_a_half_open_breaker_allows_one_probe_at_a_time() -> None:
    breaker = breaker_that_saw("xxx")
    assert [breaker.take_probe(5.0) for _ in range(3)] == [True, False, False]
    breaker.give_back_probe()
    assert [breaker.take_probe(5.0) for _ in range(2)] == [True, False]


def test_a_probe_that_is_answered_closes_the_breaker_and_clears_its_history() -> None:
    breaker = breaker_that_saw("xxx")
    probe(breaker, 5.0, OriginSignal.ANSWERS)
    assert breaker.state(5.0) is BreakerState.CLOSED
    assert breaker.pristine


def test_each_probe_that_fails_doubles_the_time_up_to_the_longest() -> None:
    breaker, now, waits = breaker_that_saw("xxx"), 0.0, []
    for _ in range(4):
        waits.append(breaker.seconds_left(now))
        now += waits[-1]
        probe(breaker, now, OriginSignal.FAILS)
    assert waits == [5, 10, 18, 18]


def test_after_the_breaker_has_closed_the_open_time_starts_small_again() -> None:
    breaker = breaker_that_saw("xxx")
    probe(breaker, 5.0, OriginSignal.FAILS)
    probe(breaker, 15.0, OriginSignal.ANSWERS)
    for _ in range(3):
        breaker.judge(OriginSignal.FAILS, 20.0, probe=False)
    assert breaker.seconds_left(20.0) == 5


def test_a_probe_that_the_guard_refuses_proves_nothing() -> None:
    breaker = breaker_that_saw("xxx")
    probe(breaker, 5.0, OriginSignal.NOTHING)
    assert breaker.state(5.0) is BreakerState.HALF_OPEN
    assert breaker.take_probe(5.0)


def test_attempts_under_way_at_the_opening_neither_close_the_breaker_nor_prolong_its_time() -> None:
    breaker = breaker_that_saw("xxx")
    breaker.judge(OriginSignal.ANSWERS, 1.0, probe=False)
    breaker.judge(OriginSignal.FAILS, 2.0, probe=False)
    assert breaker.seconds_left(2.0) == 3.0


def test_one_retry_after_opens_the_breaker_for_the_requested_time() -> None:
    breaker = breaker_that_saw("oooo")
    breaker.judge(OriginSignal.FAILS, 10.0, probe=False, wait_seconds=3600.0)
    breaker.judge(OriginSignal.FAILS, 11.0, probe=False, wait_seconds=1.0)  # the later, shorter wait changes nothing
    assert breaker.seconds_left(10.0) == 3600.0
    probe(breaker, 3610.0, OriginSignal.ANSWERS)
    assert breaker.state(3610.0) is BreakerState.CLOSED


@pytest.mark.parametrize("reason", list(FailureReason))
def test_an_origin_that_answers_is_up_whatever_its_status(reason: FailureReason) -> None:
    expected = {
        FailureReason.REFUSED: OriginSignal.NOTHING,
        FailureReason.GONE: OriginSignal.ANSWERS,
        FailureReason.CLIENT_ERROR: OriginSignal.ANSWERS,
        FailureReason.REDIRECTED: OriginSignal.ANSWERS,
    }
    assert signal_of(FailedDelivery(reason, 0.1)) is expected.get(reason, OriginSignal.FAILS)
    assert signal_of(Delivered(204, 0.1)) is OriginSignal.ANSWERS


@pytest.mark.parametrize(
    ("reason", "seconds"),
    [(FailureReason.THROTTLED, 60.0), (FailureReason.SERVER_ERROR, 60.0), (FailureReason.CLIENT_ERROR, 0.0)],
)
def test_retry_after_of_a_429_or_5xx_is_for_the_whole_origin(reason: FailureReason, seconds: float) -> None:
    assert asked_to_wait(FailedDelivery(reason, 0.1, 429, 60.0)) == seconds
    assert asked_to_wait(FailedDelivery(reason, 0.1, 429, None)) == 0.0


@pytest.mark.parametrize(
    ("asked", "at", "seconds"),
    [
        (0.0, 0.0, 5.0),
        (0.0, 4.0, 5.0),
        (0.0, 5.0, 5.0),
        (3600.0, 0.0, 3600.0),
        (3600.0, 3599.0, 18.0),
        (3600.0, 3600.0, 18.0),
    ],
)
def test_a_refused_record_waits_at_least_the_open_time_and_is_late_by_at_most_the_longest_open_time(
    asked: float, at: float, seconds: float
) -> None:
    breaker = breaker_that_saw("xx")
    breaker.judge(OriginSignal.FAILS, 0.0, probe=False, wait_seconds=asked)
    assert breaker.patience(at) == seconds


def test_refused_records_wait_for_a_hung_probe_as_long_as_the_last_failure_took() -> None:
    breaker = breaker_that_saw("xx")
    breaker.judge(OriginSignal.FAILS, 0.0, probe=False, took_seconds=20.0)
    assert breaker.patience(4.0) == 5.0
    assert breaker.take_probe(5.0)
    assert [breaker.patience(at) for at in (5.0, 10.0, 21.0, 25.0)] == [20.0, 15.0, 5.0, 5.0]
    breaker.judge(OriginSignal.FAILS, 6.0, probe=True, took_seconds=1.0)
    assert breaker.take_probe(16.0)
    assert breaker.patience(16.0) == 10.0


def test_an_origin_is_dead_once_failed_probes_have_raised_the_open_time_to_its_maximum() -> None:
    breaker = breaker_that_saw("xxx")
    probe(breaker, 5.0, OriginSignal.FAILS)
    assert not breaker.is_dead(14.9)
    probe(breaker, 15.0, OriginSignal.FAILS)
    assert breaker.is_dead(32.9)
    assert not breaker.is_dead(33.0)  # a probe is due, which may find the origin healthy
    probe(breaker, 33.0, OriginSignal.FAILS)
    assert breaker.is_dead(33.0)
    probe(breaker, 51.0, OriginSignal.ANSWERS)
    assert not breaker.is_dead(51.0)


@pytest.mark.parametrize(("asked", "dead"), [(0.0, True), (17.0, True), (60.0, False)])
def test_an_origin_that_asks_for_a_longer_pause_than_usual_is_not_dead(asked: float, dead: bool) -> None:
    breaker = breaker_that_saw("xxx")
    for at in (5.0, 15.0, 33.0):
        assert breaker.take_probe(at)
        breaker.judge(OriginSignal.FAILS, at, probe=True, wait_seconds=asked if at == 33.0 else 0.0)
    assert breaker.is_dead(34.0) is dead
    assert breaker.seconds_left(33.0) == max(18.0, asked)
