"""A throttled log line is written once in a period, with the number of lines suppressed since the last one."""

from __future__ import annotations

from telemetry.throttle import LogThrottle


def test_the_first_line_of_a_kind_is_admitted_at_any_time() -> None:
    assert LogThrottle(10.0).admit(0.0) == 0
    assert LogThrottle(10.0).admit(1e9) == 0


def test_lines_within_the_period_are_held_back_and_counted_by_the_next_one() -> None:
    throttle = LogThrottle(10.0)
    assert throttle.admit(100.0) == 0

    assert [throttle.admit(now) for now in (100.0, 105.0, 109.9)] == [None, None, None]

    assert throttle.admit(110.0) == 3
    assert throttle.admit(119.9) is None
    assert throttle.admit(120.0) == 1


def test_each_kind_has_a_period_of_its_own() -> None:
    throttle = LogThrottle(10.0)

    assert [throttle.admit(0.0, kind) for kind in ("a", "b", "a")] == [0, 0, None]


def test_kinds_are_bounded_and_a_forgotten_one_is_admitted_again() -> None:
    throttle = LogThrottle(10.0, most_kinds=3)
    for kind in "abcd":
        assert throttle.admit(0.0, kind) == 0
        assert len(throttle) <= 3

    assert throttle.admit(0.0, "d") is None
    assert throttle.admit(0.0, "a") == 0
