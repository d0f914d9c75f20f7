"""The wait before a callback's next attempt, and the pace of the tiers."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from schemas.topics import TIER_DELAYS_SECONDS, Topics, hop
from workers.delivery.post import FailedDelivery, FailureReason
from workers.delivery.retries import (
    GiveUp,
    Retry,
    RetryDecision,
    Schedule,
    busy_tier,
    decide,
    deferral_tier,
    due_ms,
    is_early,
    left_ms,
)
from workers.delivery.tier_pace import TierPace
from workers.egress.answers import parse_retry_after
from workers.stage.record import Record

NOW = 1_700_000_000_000
DAY = 86_400
STEADY = Schedule(jitter=0.0)


def failed(reason: FailureReason = FailureReason.SERVER_ERROR, retry_after: float | None = None) -> FailedDelivery:
    return FailedDelivery(reason, 0.1, 500, retry_after)


@dataclass(frozen=True)
class Row:
    attempt: int
    outcome: FailedDelivery
    decision: RetryDecision


THROTTLED, REFUSED, GONE = FailureReason.THROTTLED, FailureReason.REFUSED, FailureReason.GONE
TABLE = [
    # These rows are all waits of the schedule, and the end of the schedule.
    *(
        Row(attempt, failed(), Retry(seconds, NOW + 1000 * seconds))
        for attempt, seconds in enumerate((5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400), 1)
    ),
    Row(10, failed(), GiveUp("callback_exhausted")),
    Row(11, failed(), GiveUp("callback_exhausted")),
    # Permanent failures are not retried.
    Row(1, failed(REFUSED), GiveUp("callback_refused")),
    Row(1, failed(GONE), GiveUp("endpoint_gone")),
    # A retry comes half a second after Retry-After allows it. If the tier is too short, another tier follows.
    Row(1, failed(THROTTLED, 0), Retry(5, NOW + 5_000)),
    Row(1, failed(THROTTLED, 3), Retry(5, NOW + 5_000)),
    Row(1, failed(THROTTLED, 20), Retry(5, NOW + 20_500)),
    Row(1, failed(THROTTLED, 60), Retry(30, NOW + 60_500)),
    Row(1, failed(THROTTLED, 300), Retry(300, NOW + 300_500)),
    Row(1, failed(THROTTLED, DAY), Retry(86400, NOW + 86_400_500)),
    Row(4, failed(THROTTLED, 60), Retry(7200, NOW + 7_200_000)),
    Row(4, failed(THROTTLED, 7_200), Retry(7200, NOW + 7_344_000)),
    Row(10, failed(THROTTLED, 60), GiveUp("callback_exhausted")),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.attempt}-{row.decision}")
def test_the_decision_follows_from_attempt_and_outcome(row: Row) -> None:
    assert decide(row.attempt, row.outcome, NOW, random.Random(1), STEADY) == row.decision


@pytest.mark.parametrize("reason", sorted(set(FailureReason) - {FailureReason.REFUSED, FailureReason.GONE}))
def test_every_failure_that_may_pass_is_tried_again(reason: FailureReason) -> None:
    assert decide(1, failed(reason), NOW, random.Random(1), STEADY) == Retry(5, NOW + 5_000)


@pytest.mark.parametrize("attempt", range(1, 10))
def test_jitter_spreads_a_wait_over_ten_percent_and_keeps_its_tier(attempt: int) -> None:
    rng, delay = random.Random(7), TIER_DELAYS_SECONDS[attempt - 1]
    decisions = [decide(attempt, failed(), NOW, rng, Schedule()) for _ in range(200)]
    waits = [decision.not_before_ms - NOW for decision in decisions if isinstance(decision, Retry)]
    assert {decision.tier_delay for decision in decisions if isinstance(decision, Retry)} == {delay}
    assert delay * 1000 <= min(waits) < delay * 1010
    assert delay * 1090 < max(waits) <= delay * 1100


@pytest.mark.parametrize(
    ("left_seconds", "tier"),
    [
        (-10, 5), (0, 5), (4.9, 5), (5, 5), (29.9, 5), (30, 30), (119.9, 30), (120, 120), (299.9, 120), (300, 300),
        (1_799, 300), (1_800, 1800), (86_399, 72000), (86_400, 86400), (10 * DAY, 86400),
    ],
)  # fmt: skip
def test_a_hop_takes_the_largest_tier_that_fits(left_seconds: float, tier: float) -> None:
    assert hop(round(left_seconds * 1000), STEADY.tiers) == tier


@pytest.mark.parametrize("attempt", range(1, 10))
@pytest.mark.parametrize("retry_after", [None, 60, 4_000, DAY])
def test_a_waiting_record_is_never_tried_too_soon_and_hops_seldom(attempt: int, retry_after: float | None) -> None:
    schedule, rng = Schedule(), random.Random(attempt)
    outcome, wanted_seconds = failed(THROTTLED, retry_after), max(TIER_DELAYS_SECONDS[attempt - 1], retry_after or 0)
    decision = decide(attempt, outcome, NOW, rng, schedule)
    assert isinstance(decision, Retry)
    now, hops = due_ms(NOW, decision.tier_delay), 0
    while is_early(decision.not_before_ms - now, attempt, schedule):
        now, hops = due_ms(now, hop(decision.not_before_ms - now, schedule.tiers)), hops + 1
    assert now - NOW >= wanted_seconds * 1000
    assert now - NOW <= wanted_seconds * 1000 * 1.13 + 5_000
    assert hops <= 70


@pytest.mark.parametrize(
    ("early_by_ms", "attempt", "early"),
    [(0, 1, False), (500, 1, False), (501, 1, True), (6_000, 2, False), (6_001, 2, True), (1_728_000, 9, False),
     (1_728_001, 9, True), (-1, 1, False), (500, 0, False), (1_728_000, 99, False),
     # A time that is further off than any wait comes from a wrong clock, and holds nothing.
     (86_400_000, 1, True), (100 * DAY * 1000, 1, False), (-DAY * 1000, 1, False)],
)  # fmt: skip
def test_a_record_is_due_within_the_slack_of_its_wait(early_by_ms: int, attempt: int, early: bool) -> None:
    assert is_early(early_by_ms, attempt, Schedule()) is early


@pytest.mark.parametrize(
    ("by_clock_ms", "written_ms", "tier_ms", "left"),
    [
        (200, 5_200, 5_000, 200),  # the normal case
        (-60_000, 5_200, 5_000, -60_000),  # the tier released the record late
        (5_100, 5_200, 5_000, 5_100),  # the tier released the record at once, so the record's timestamp is wrong
        (3_600_000, 3_600_000, 1_800_000, 3_600_000),
        (65_200, 5_200, 5_000, 65_200),
        (65_201, 5_200, 5_000, 200),  # no tier releases a record so early, so our clock was set back
        (21_600_200, 5_200, 5_000, 200),
        (21_600_000, 0, 5_000, 0),
        (200, None, 5_000, 200),
    ],
)
def test_the_rest_of_a_wait_follows_the_clock_as_far_as_that_is_plausible(
    by_clock_ms: int, written_ms: int | None, tier_ms: int, left: int
) -> None:
    assert left_ms(NOW + by_clock_ms, NOW, written_ms, tier_ms) == left


@pytest.mark.parametrize("attempt", range(1, 10))
def test_no_wait_is_longer_than_the_longest(attempt: int) -> None:
    schedule, rng = Schedule(), random.Random(attempt)
    for outcome in (failed(), failed(THROTTLED, DAY)):
        decision = decide(attempt, outcome, NOW, rng, schedule)
        assert isinstance(decision, Retry)
        assert decision.not_before_ms - NOW <= schedule.longest_wait_ms


@pytest.mark.parametrize("delays", [(), (0.0,), (5.0, -1.0)])
def test_a_schedule_without_waits_is_refused(delays: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="at least one wait"):
        Schedule(delays)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0), ("120", 120), (" 120 ", 120), ("86400", DAY), ("86401", DAY), ("9" * 5000, DAY),
        ("Tue, 14 Nov 2023 22:15:20 GMT", 120),
        ("Tuesday, 14-Nov-23 22:15:20 GMT", 120),
        ("Tue Nov 14 22:15:20 2023", 120),
        ("Tue, 14 Nov 2023 22:13:00 GMT", 0),
        ("Fri, 14 Nov 2053 22:13:00 GMT", DAY),
        ("", None), ("-5", None), ("1.5", None), ("soon", None), ("\u0661\u0662", None),
        ("Tue, 99 Nov 2023 22:15:20 GMT", None), ("Tue, 14 Nov 99999 22:15:20 GMT", None),
    ],
)  # fmt: skip
def test_retry_after_is_read_in_both_forms(value: str, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW / 1000) == seconds


@pytest.mark.parametrize(
    ("left_alone", "tier"),
    [
        *((seconds, 5) for seconds in (0, 3, 5)),
        *((seconds, 30) for seconds in (5.5, 15, 30, 59)),
        *((seconds, 120) for seconds in (60, 120, 149)),
        *((seconds, 300) for seconds in (150, 300, 301)),
        (4000, 1800),
        *((seconds, 7200) for seconds in (7000, 7200)),
        (90_000, 86_400),
    ],
)
def test_a_deferred_record_waits_in_the_tier_that_is_long_enough_or_in_the_largest_that_fits(
    left_alone: float, tier: float
) -> None:
    assert deferral_tier(left_alone, 0, STEADY.tiers) == tier


@pytest.mark.parametrize(
    ("turn_seconds", "deferred", "tier"),
    [(DAY, 0, 5), (DAY, 2, 5), (0, 3, 5), (299.9, 3, 5), (300, 3, 300), (DAY, 3, 300), (10 * DAY, 99, 300)],
)
def test_a_record_of_a_busy_destination_asks_again_after_five_minutes_at_the_latest(
    turn_seconds: float, deferred: int, tier: float
) -> None:
    assert busy_tier(turn_seconds, deferred, STEADY.waits) == tier


@pytest.mark.parametrize("left_alone", [5.0, 40.0, 300.0])
def test_a_long_waiting_record_is_tried_seldom_and_is_late_by_a_third_at_most(left_alone: float) -> None:
    for waited in range(0, 8 * DAY, 600):
        tier = deferral_tier(left_alone, 1000 * waited, STEADY.tiers)
        assert tier <= max(waited / 3, 2 * left_alone, left_alone + 30, min(waited / 2, 300))


# -- tier pace -------------------------------------------------------------------------------------------------------
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


def test_a_process_whose_clock_is_ahead_waits_for_the_records_that_it_wrote_itself() -> None:
    clock = TwoClocks(wall_ms=NOW + HOUR)
    pace = TierPace(TOPICS, clock)
    clock.run(10)
    for offset in range(3):
        assert pace.due_ms(waiting(offset, NOW + offset, written=NOW + HOUR + offset)) == NOW + HOUR + offset + 5_000


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
