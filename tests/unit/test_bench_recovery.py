"""What the bench of recovery counts: jobs before and after the kill, and those that others have overtaken."""

from __future__ import annotations

from bench.recovery import PARTITIONS, Measured, measured

KILLED_AT = 1000.0


def test_jobs_are_counted_by_when_their_results_were_written() -> None:
    answered = [(0, 980.0), (12, 995.0), (24, 999.0), (36, 1000.0), (48, 1009.0), (60, 1020.0)]
    assert measured(answered, KILLED_AT, before=10, after=20) == Measured(0.2, 0.1, 0, 0.0)


def test_a_job_is_old_where_a_later_one_of_its_partition_was_answered_before_the_kill() -> None:
    first, second, third = 0, PARTITIONS, 2 * PARTITIONS
    answered = [(third, 990.0), (first, 1008.0), (second, 1030.0), (1, 1050.0)]
    found = measured(answered, KILLED_AT, before=10, after=60)
    assert (found.old, found.old_seconds) == (2, 30.0)


def test_an_old_job_that_was_not_answered_has_no_end() -> None:
    found = measured([(2 * PARTITIONS, 990.0), (0, 1008.0)], KILLED_AT, before=10, after=60)
    assert (found.old, found.old_seconds) == (2, None)
