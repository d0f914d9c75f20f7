"""Complete records wait for a time for other records of their transaction."""

from workers.stage.group_commit import (
    LINGER_BYTES,
    LINGER_RECORDS,
    LINGER_SECONDS,
    MOST_SECONDS,
    SHARE,
    GroupCommit,
    Lingering,
)
from workers.stage.partition import Partition
from workers.stage.record import Output, Record
from workers.stage.runner import Handled


def told(took_seconds: float, times: int = 200) -> GroupCommit:
    company = GroupCommit()
    for _ in range(times):
        company.came(took_seconds, now=10.0)
    return company


def test_jobs_that_take_no_time_do_not_wait() -> None:
    assert not told(0.0).expects(10.0)


def test_slow_jobs_wait_for_a_small_share_of_their_time_and_never_long() -> None:
    assert 0.9 * SHARE < told(1.0).seconds <= SHARE
    assert told(600.0).seconds <= MOST_SECONDS


def test_later_records_wait_no_longer_than_the_first_one() -> None:
    company = told(1.0)
    company.came(1.0, now=10.0 + SHARE * 2)
    assert not company.expects(10.0 + SHARE * 2)


def test_after_a_settle_the_wait_begins_with_the_next_record() -> None:
    company = told(1.0)
    company.left()
    assert not company.expects(11.0)
    company.came(1.0, now=12.0)
    assert company.expects(12.0 + SHARE / 2)


def test_one_slow_job_among_many_quick_ones_makes_them_wait_for_next_to_nothing() -> None:
    company = told(0.001)
    company.came(60.0, now=10.0)
    assert company.seconds < MOST_SECONDS / 10


def test_without_a_reader_even_the_quickest_records_wait_for_others() -> None:
    company = GroupCommit(least_seconds=0.05)
    company.came(0.0, now=10.0)
    assert company.expects(10.04)
    assert not company.expects(10.06)


def complete(*outputs: Output, value: bytes = b"") -> Handled:
    return Handled(Partition("t", 0, 1, 0.0), Record("t", 0, 0, value), outputs, 0.0)


def test_lingering_records_wait_until_the_first_has_waited_long_enough() -> None:
    lingering, first, second = Lingering(), complete(), complete()
    lingering.add(first, 10.0)
    lingering.add(second, 10.0 + LINGER_SECONDS * 0.9)
    assert lingering.over(10.0 + LINGER_SECONDS * 0.9) == []
    assert lingering.over(10.0 + LINGER_SECONDS) == [first, second]
    assert lingering.over(99.0) == []
    lingering.add(first, 99.0)
    assert lingering.over(99.0) == []


def test_lingering_records_wait_no_longer_once_they_are_many() -> None:
    lingering = Lingering()
    for _ in range(LINGER_RECORDS):
        assert lingering.over(10.0) == []
        lingering.add(complete(), 10.0)
    assert len(lingering.over(10.0)) == LINGER_RECORDS


def test_lingering_records_wait_no_longer_once_they_are_large() -> None:
    lingering = Lingering()
    for _ in range(2):
        lingering.add(complete(value=bytes(LINGER_BYTES // 2)), 10.0)
    assert len(lingering.over(10.0)) == 2
    lingering.add(complete(value=b"small"), 10.0)
    assert lingering.over(10.0) == []


def test_a_record_lingers_only_where_all_of_its_outputs_may() -> None:
    now, later = Output("now", b""), Output("later", b"", may_linger=True)
    assert complete(later, later).may_linger
    assert not complete(later, now).may_linger
    assert not complete().may_linger
