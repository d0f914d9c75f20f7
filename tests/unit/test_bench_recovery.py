"""The recovery bench's counts: jobs before and after the kill, and the time until the oldest were answered."""

from __future__ import annotations

from bench.recovery import PARTITIONS, Measured, measured

KILLED_AT = 1000.0


def test_jobs_are_counted_by_when_their_results_were_written() -> None:
    answered = [(0, 980.0), (12, 995.0), (24, 999.0), (36, 1000.0), (48, 1009.0), (60, 1020.0)]
    assert measured(answered, KILLED_AT, before=10, after=20, under_way=0) == Measured(0.2, 0.1, 0.0)


def test_the_oldest_are_the_first_that_were_not_answered_at_the_kill_in_each_partition() -> None:
    answered = [(number, 990.0) for number in range(PARTITIONS)]
    answered += [(number, 1010.0) for number in range(PARTITIONS, 2 * PARTITIONS - 1)]
    answered += [(2 * PARTITIONS - 1, 1030.0), (2 * PARTITIONS, 1050.0)]
    assert measured(answered, KILLED_AT, 10, 60, under_way=PARTITIONS).oldest_seconds == 30.0
    assert measured(answered, KILLED_AT, 10, 60, under_way=2 * PARTITIONS).oldest_seconds is None
