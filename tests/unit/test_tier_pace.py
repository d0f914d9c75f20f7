"""The due time of a tier's record, if the broker's clock is wrong or our own clock is changed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from schemas.topics import Topics
from workers.delivery.tier_pace import TierPace
from workers.stage.record import Record

NOW = 1_700_000_000_000
TOPICS = Topics()
HOUR = 3_600_000


@dataclass
class TwoClocks:
    """A wall clock that a test can set, and a steady clock that setting does not change."""

    wall_ms: int = NOW
    steady_ms: int = 77_000

    def time(self) -> float:
        return self.wall_ms / 1000

    def monotonic(self) -> float:
        return self.steady_ms / 1000

    def sleep(self, seconds: float) -> None:
        self.run(round(1000 * seconds))

    def run(self, ms: int) -> None:
        self.wall_ms += ms
        self.steady_ms += ms


def waiting(
    offset: int, appended_ms: int, delay: float = 5, partition: int = 0, written: int | str | None = None
) -> Record:
    headers = [] if written is None else [("written", str(written).encode())]
    return Record(TOPICS.tier(delay), partition, offset, b"", headers=headers, timestamp_ms=appended_ms)


def test_a_record_is_due_after_its_tiers_delay_and_one_of_another_topic_at_once() -> None:
    pace = TierPace(TOPICS, TwoClocks())

    assert pace.due_ms(waiting(1, NOW - 100_000, delay=300)) == NOW + 200_000
    assert pace.due_ms(Record(TOPICS.results, 0, 1, b"", timestamp_ms=NOW)) is None
    assert pace.paced


def test_records_from_a_clock_that_is_ahead_wait_their_delay_and_not_each_others() -> None:
    clock = TwoClocks()
    pace = TierPace(TOPICS, clock)

    assert pace.due_ms(waiting(1, NOW + HOUR)) == NOW + 5_000
    clock.run(5_000)
    assert pace.due_ms(waiting(2, NOW + HOUR + 1_000)) == NOW + 6_000
    assert pace.due_ms(waiting(9, NOW - 1_000, partition=1)) == NOW + 4_000
    clock.run(1_000)
    # The broker's clock was corrected before the third record.
    assert pace.due_ms(waiting(3, NOW + 2_000)) == NOW + 7_000


@pytest.mark.parametrize("behind_ms", [3_000, 6_000, 60_000])
def test_records_from_a_clock_that_is_behind_wait_their_delay_from_when_they_were_written(behind_ms: int) -> None:
    clock = TwoClocks()
    pace = TierPace(TOPICS, clock)
    clock.run(100)
    for offset in range(3):
        assert pace.due_ms(waiting(offset, NOW + offset - behind_ms, written=NOW + offset)) == NOW + offset + 5_000


@pytest.mark.parametrize(
    ("written", "later_ms"),
    [
        (NOW - HOUR, 0),  # the writer's clock was behind; the broker's timestamp is right
        (NOW + HOUR, 60_000),  # the writer's clock was ahead, and a fleet's clocks may differ by a minute
        ("soon", 0),
        ("9" * 16, 0),
        ("", 0),
    ],
)
def test_a_writers_clock_moves_no_record_by_more_than_a_minute(written: int | str, later_ms: int) -> None:
    clock = TwoClocks()
    clock.run(100_000)
    assert TierPace(TOPICS, clock).due_ms(waiting(1, NOW, written=written)) == NOW + later_ms + 5_000


def test_writers_whose_clocks_differ_do_not_empty_a_tier() -> None:
    clock = TwoClocks()
    pace = TierPace(TOPICS, clock)
    clock.run(10)
    for offset, ahead_ms in enumerate((50_000, 10_000, 0)):
        due_ms = pace.due_ms(waiting(offset, NOW + offset, written=NOW + offset + ahead_ms))
        assert due_ms is not None
        assert NOW + offset + 5_000 <= due_ms <= clock.wall_ms + 5_000


def test_the_errors_of_two_clocks_do_not_add_up() -> None:
    """The writer's clock is ahead of ours and the broker's is right, so the record seems to come from the future."""
    assert TierPace(TOPICS, TwoClocks()).due_ms(waiting(1, NOW, written=NOW + 6_000)) == NOW + 5_000


def test_setting_the_wall_clock_neither_delays_nor_releases_a_record() -> None:
    clock = TwoClocks()
    pace = TierPace(TOPICS, clock)
    clock.run(2_000)
    for set_by in (-24 * HOUR, 48 * HOUR):
        clock.wall_ms += set_by
        # The record is due three seconds from now on any wall clock.
        assert pace.due_ms(waiting(1, NOW)) == clock.wall_ms + 3_000
        assert pace.due_ms(waiting(2, NOW + 500)) == clock.wall_ms + 3_500
        assert pace.due_ms(waiting(3, NOW + 1_900)) == clock.wall_ms + 4_900


def test_a_process_that_started_with_a_wrong_clock_adopts_the_right_time_after_some_minutes() -> None:
    clock = TwoClocks(wall_ms=NOW + HOUR)
    pace = TierPace(TOPICS, clock)
    assert pace.due_ms(waiting(1, NOW)) == NOW + 5_000
    clock.wall_ms -= HOUR
    clock.run(1_000)
    assert pace.due_ms(waiting(2, clock.wall_ms)) == clock.wall_ms + 5_000 - HOUR, "it would be due for an hour"
    for _ in range(6):
        clock.run(60_000)
        due_ms = pace.due_ms(waiting(3, clock.wall_ms))
    assert due_ms == clock.wall_ms + 5_000


def test_records_in_a_tier_of_an_earlier_schedule_are_taken_out_of_it() -> None:
    former = {"callback_retries.45s": 45.0}
    record = Record("callback_retries.45s", 0, 1, b"", timestamp_ms=NOW)

    assert TierPace(TOPICS, TwoClocks(), former).due_ms(record) == NOW + 45_000
    assert TierPace(TOPICS, TwoClocks()).due_ms(record) is None
