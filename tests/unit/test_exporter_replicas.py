"""The number of workers that answers the waiting jobs in time, and the measurements of the workers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.exporter.answers import AnswerTime
from operators.exporter.replicas import LEAST_HORIZON_SECONDS, Hysteresis, Plan, WaitingJobs, wanted_replicas
from operators.exporter.throughput import Throughput
from schemas.worker import LONGEST_ANSWER_SECONDS

PLAN = Plan(max_replicas=1000, start_seconds=100, margin_seconds=50, time_share=0.5)
SECONDS = st.floats(-1e15, 1e15)
NEAR = st.floats(-100, 3000)
ANSWERS = st.floats(0, LONGEST_ANSWER_SECONDS)
NEAR_ANSWERS = st.floats(0, 3000) | ANSWERS
LANES = st.lists(st.builds(WaitingJobs, st.lists(SECONDS, max_size=20), st.integers(0, 10**9)), max_size=3)


def due_in(seconds: float, jobs: int) -> WaitingJobs:
    return WaitingJobs([seconds] * jobs)


@pytest.mark.parametrize(
    ("lanes", "wanted"),
    [
        ([], 0),
        ([WaitingJobs([])], 0),
        ([due_in(1e6, 1)], 1),
        ([due_in(4e15, 1)], 1),  # a record that is no valid job has no deadline
        ([due_in(1150, 500)], 1),  # 1,000 s are left after the start and the margin, and the jobs fill half of them
        ([due_in(1150, 501)], 2),
        ([due_in(1150, 500), due_in(1150, 1000)], 3),  # the jobs of a pool's two lanes are added up
        ([WaitingJobs([1e6] * 900 + [1150.0] * 100)], 2),  # the urgent jobs have to wait for all jobs before them
        ([WaitingJobs([1150.0] * 100 + [1e6] * 900)], 1),  # jobs behind an urgent job are not urgent
        ([WaitingJobs([1150.0] * 100, unread=900)], 2),  # unread jobs count as due with the last known job
        ([WaitingJobs([], unread=1)], 1),
        ([due_in(-5, 300)], 300 // LEAST_HORIZON_SECONDS),
    ],
)
def test_enough_workers_are_wanted_for_the_tightest_deadline(lanes: list[WaitingJobs], wanted: int) -> None:
    assert wanted_replicas(lanes, 1.0, PLAN) == wanted


def test_fewer_workers_are_wanted_if_each_is_faster() -> None:
    lanes = [due_in(1150, 5000)]

    assert [wanted_replicas(lanes, speed, PLAN) for speed in (0.5, 1, 10, 100)] == [20, 10, 1, 1]


@pytest.mark.parametrize(
    ("answer_seconds", "wanted"),
    [
        (0, 11),
        (50, 11),  # the fixed margin counts, because the measured time does not exceed it
        (300, 15),  # 700 s are left after the start and the measured time, and the jobs fill half of them
        (500, 20),
        (501, 20),  # half of the 1,000 s after the start is kept for the waiting jobs
        (1e5, 20),
    ],
)
def test_a_measured_time_of_the_answers_replaces_a_shorter_margin_up_to_half_of_the_time_left(
    answer_seconds: float, wanted: int
) -> None:
    assert wanted_replicas([due_in(1100, 5000)], 1.0, replace(PLAN, answer_seconds=answer_seconds)) == wanted


@given(LANES, st.floats(1e-6, 1e6), st.integers(0, 9), st.integers(0, 9), ANSWERS)
def test_any_jobs_give_a_number_of_workers_within_the_bounds(
    lanes: list[WaitingJobs], speed: float, least: int, more: int, answers: float
) -> None:
    plan = Plan(min_replicas=least, max_replicas=least + more, answer_seconds=answers)
    wanted = wanted_replicas(lanes, speed, plan)

    assert least <= wanted <= least + more
    assert wanted > 0 or least + more == 0 or not any(lane.jobs for lane in lanes)


def unbounded(lanes: list[WaitingJobs], answer_seconds: float) -> int:
    """Return how many slow workers are wanted; of fast workers, one would be enough for the few jobs."""
    return wanted_replicas(lanes, 1e-4, Plan(max_replicas=10**15, answer_seconds=answer_seconds))


@given(st.lists(NEAR, max_size=5), NEAR, st.integers(0, 10**6), LANES, NEAR_ANSWERS)
def test_further_jobs_never_want_fewer_workers(
    known: list[float], further: float, unread: int, others: list[WaitingJobs], answers: float
) -> None:
    alone = unbounded([WaitingJobs(known)], answers)

    assert unbounded([WaitingJobs([*known, further])], answers) >= alone
    assert unbounded([WaitingJobs([further, *known])], answers) >= alone
    assert unbounded([WaitingJobs(known), *others], answers) >= alone
    some = unbounded([WaitingJobs(known, unread)], answers)
    assert unbounded([WaitingJobs(known, unread + 1)], answers) >= some >= alone


@given(NEAR, st.floats(0, 2000), NEAR_ANSWERS, NEAR_ANSWERS, st.integers(0, 5))
def test_less_time_and_longer_answers_never_want_fewer_workers(
    left: float, less: float, answers: float, longer: float, unread: int
) -> None:
    wanted = unbounded([WaitingJobs([left], unread)], answers)

    assert unbounded([WaitingJobs([left - less], unread)], answers) >= wanted
    assert unbounded([WaitingJobs([left], unread)], answers + longer) >= wanted


def test_a_rise_is_followed_at_once_and_a_fall_after_its_time() -> None:
    hysteresis = Hysteresis(60)
    wanted = [(0, 2), (10, 5), (20, 1), (69, 3), (70, 3), (71, 1), (130, 1), (131, 0), (200, 0)]

    assert [hysteresis.follow(at, number) for at, number in wanted] == [2, 5, 5, 5, 5, 3, 3, 1, 0]


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(0, 9)), max_size=40))
def test_the_hysteresis_is_the_highest_number_of_its_window(steps: list[tuple[float, int]]) -> None:
    hysteresis, seen, at = Hysteresis(60), [], 0.0
    for after, number in steps:
        at += after
        seen.append((at, number))
        assert hysteresis.follow(at, number) == max(value for when, value in seen if when >= at - 60)


@given(st.lists(st.lists(ANSWERS, max_size=5), max_size=9))
def test_the_time_of_a_pools_answers_is_that_of_one_of_its_workers_and_stays_when_they_are_gone(
    readings: list[list[float]],
) -> None:
    answers, last = AnswerTime(), [0.0]
    for measured in readings:
        answers.observe(measured)
        last = sorted(measured) or last
        assert last[0] <= answers.seconds <= last[-1]
        assert answers.seconds in last
        last = [answers.seconds]


def test_one_odd_worker_does_not_decide_for_its_pool() -> None:
    answers = AnswerTime()
    answers.observe([LONGEST_ANSWER_SECONDS, 20.0, 30.0])

    assert answers.seconds == 30.0


def test_busy_workers_replace_the_assumption_within_a_minute_or_two() -> None:
    throughput = Throughput(assumed=1.0, busy_jobs=10)
    for second in range(0, 125, 5):
        throughput.observe(second, done=second * 40, waiting=100_000, workers=2)

    assert throughput.jobs_per_second == pytest.approx(20, rel=0.15)


def test_thousands_of_jobs_that_expire_at_once_do_not_make_a_worker_fast() -> None:
    throughput, done = Throughput(assumed=1.0, busy_jobs=10), 0
    for second in range(0, 1800, 5):
        done += 20_000 if second == 900 else 10
        throughput.observe(second, done=done, waiting=100_000, workers=2)
        assert throughput.jobs_per_second < 1.1

    assert throughput.jobs_per_second == pytest.approx(1, rel=0.05)


def test_workers_without_enough_jobs_do_not_count_as_slow() -> None:
    throughput = Throughput(assumed=20.0, busy_jobs=10)
    for second in range(0, 3600, 5):
        throughput.observe(second, done=second, waiting=3, workers=2)

    assert throughput.jobs_per_second == 20.0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((0, 0, 500, 2), (5, 500, 500, 3)),  # a worker came between the readings
        ((0, 900, 500, 2), (5, 500, 500, 2)),  # progress was lost
        ((5, 0, 500, 2), (5, 500, 500, 2)),  # no time passed
        ((0, 0, 500, 0), (5, 500, 500, 0)),  # no worker is known
    ],
)
def test_readings_that_cannot_be_compared_show_nothing(
    before: tuple[int, int, int, int], after: tuple[int, int, int, int]
) -> None:
    throughput = Throughput(assumed=1.0, busy_jobs=10)
    throughput.observe(*before)
    throughput.observe(*after)

    assert throughput.jobs_per_second == 1.0
