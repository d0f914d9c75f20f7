from __future__ import annotations

import pytest

from producers.times import NotATime, parse_time, show_time

NOW = 1_800_000_000.0
"""15 January 2027, 08:00 UTC."""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("-90s", NOW - 90), ("-30m", NOW - 1_800), ("-2h", NOW - 7_200), ("-7d", NOW - 604_800),
        (" -1w ", NOW - 604_800),
        ("2027-01-15T08:00:00Z", NOW), ("2027-01-15T08:00", NOW), ("2027-01-15T09:00:00+01:00", NOW),
        ("2027-01-15", NOW - 8 * 3600), ("2027-01-15 08:00:00.250", NOW + 0.25),
    ],
)  # fmt: skip
def test_a_time_is_iso_8601_in_utc_by_default_or_an_age(text: str, seconds: float) -> None:
    assert parse_time(text, NOW) == round(seconds * 1000)


@pytest.mark.parametrize("text", ["", "2h", "-2", "-2y", "--2h", "-9999999w", "yesterday", "1800000000", "2027-13-01"])
def test_anything_else_is_no_time(text: str) -> None:
    with pytest.raises(NotATime, match="ISO 8601"):
        parse_time(text, NOW)


def test_a_time_is_shown_so_that_it_can_be_read_back() -> None:
    assert show_time(round(NOW * 1000) + 5) == "2027-01-15T08:00:00.005Z"
    assert parse_time(show_time(1_800_000_000_005), NOW) == 1_800_000_000_005
