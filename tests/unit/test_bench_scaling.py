"""Workers scaled by deadlines cost less than workers scaled by lag, and miss no deadline that scaling by lag meets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.scaling.__main__ import MOST_SHARE, compare
from bench.scaling.cluster import START_SECONDS, WORKER_JOBS, Sight, SimulatedRun, simulate
from bench.scaling.traces import NAMES, SimulatedJob, trace
from bench.scaling.ways import by_deadlines

SHORT_SECONDS = 7200.0
SLOW = "slow model"


@pytest.mark.parametrize("name", [name for name in NAMES if name != SLOW])
def test_scaling_by_deadlines_costs_less_than_scaling_by_lag_and_misses_no_further_deadline(name: str) -> None:
    ours, (lag, *_) = compare(name, SHORT_SECONDS)

    assert ours.missed <= lag.missed
    assert ours.replica_hours <= MOST_SHARE * lag.replica_hours


def test_with_a_slow_model_deadlines_cost_less_than_lag_and_miss_few_more_jobs() -> None:
    jobs = trace(SLOW, SHORT_SECONDS)
    ours, (lag, *_) = compare(SLOW, SHORT_SECONDS)

    assert len(ours.missed - lag.missed) <= len(jobs) / 200
    assert ours.replica_hours <= MOST_SHARE * lag.replica_hours


def by_both_margins(due_seconds: float) -> tuple[SimulatedRun, SimulatedRun]:
    """Simulate four hours of slow answers, with the measured margin and with the fixed one; return both outcomes.

    Each job is due after `due_seconds`. If this time is short, many jobs are late, so four hours show as much as a day.
    """
    jobs = [replace(job, deadline=job.arrival + due_seconds) for job in trace(SLOW, 2 * SHORT_SECONDS)]
    measured, fixed = (simulate(jobs, by_deadlines(measured=each), 2 * SHORT_SECONDS) for each in (True, False))
    return measured, fixed


def test_if_answers_outlast_the_fixed_margin_the_measured_one_halves_the_late_jobs_for_few_hours() -> None:
    measured, fixed = by_both_margins(1200)

    assert len(measured.missed) <= len(fixed.missed) / 2
    assert measured.replica_hours <= 1.05 * fixed.replica_hours


def test_answers_that_take_nearly_all_of_the_jobs_time_do_not_start_all_workers() -> None:
    measured, fixed = by_both_margins(900)

    assert len(measured.missed) < len(fixed.missed)
    assert measured.replica_hours <= 1.1 * fixed.replica_hours


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_is_the_same_each_time_and_in_order(name: str) -> None:
    jobs = trace(name, SHORT_SECONDS)

    assert jobs == trace(name, SHORT_SECONDS)
    assert jobs == sorted(jobs, key=lambda job: job.arrival)
    assert all(job.service_seconds > 0 and job.deadline > job.arrival for job in jobs)


def test_the_simulated_lag_is_counted_from_the_slowest_job_of_a_partition() -> None:
    seen: list[Sight] = []

    def wish(sight: Sight) -> int:
        seen.append(sight)
        return 5

    slow = SimulatedJob(1.0, 1000.0, 9000.0)
    jobs = [slow, *(SimulatedJob(2.0 + n / 100, 1.0, 9000.0) for n in range(159))]
    outcome = simulate(jobs, wish, 600)

    late = next(sight for sight in seen if sight.at == 600)
    assert (late.kafka_lag, sum(lane.jobs for lane in late.lanes), late.done) == (10, 1, 159)
    assert outcome.missed == set()
    assert outcome.replica_seconds >= 5 * 1000


def test_a_job_that_no_worker_could_take_in_time_is_missed() -> None:
    jobs = [SimulatedJob(0.0, 1.0, START_SECONDS / 2)] * (WORKER_JOBS + 1)

    assert len(simulate(jobs, lambda _: 1, 300).missed) == WORKER_JOBS + 1
