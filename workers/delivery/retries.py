"""The times of a callback's retries, as pure functions over values.

The schedule's n-th wait follows attempt n, and the last attempt follows the last wait. A tier is a topic for waits of
one length. All records of a tier wait equally long, so the tier is a queue, and its consumer looks at the first record
only. If a wait is longer than its tier, the header `not-before` states the end of the wait. A record that leaves its
tier before this time hops to the largest tier that fits the time left. A hop is no attempt. Headers state the end of
the wait twice, as a time and as the duration left. So a clock that is set back, or is behind other processes' clocks,
hardly lengthens a wait.

Jitter spreads callbacks that failed together. Jitter makes a wait up to 10 % longer and never shorter, since a record
does not leave its tier early. A wait may end 2 % early (the slack): otherwise a record would pass through the smallest
tiers many times for the rest of a long wait. A `Retry-After` is a minimum, and the record waits for at least this time.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from schemas.topics import TIER_DELAYS_SECONDS, hop, tiers_of
from workers.delivery.post import FailedDelivery, FailureReason
from workers.egress.answers import MAX_RETRY_AFTER_SECONDS

EXHAUSTED = "callback_exhausted"
REFUSED = "callback_refused"
GONE = "endpoint_gone"

_SLACK = 0.02
_ASKS_AFTER = 0.25
"""The next wait of a record whose origin gets no attempts, as a share of the record's wait so far."""
_LATE_BY = 1 / 3
"""Largest delay in noticing that the origin answers again, as a share of the record's wait so far."""
_LATE_SECONDS = 300.0
"""Largest delay in seconds in noticing that the origin answers again, for records that have waited only briefly."""
_SHORTLY_SECONDS = 30.0
"""The number of seconds by which a tier may always exceed the time until the next probe."""
CLOCKS_DIFFER_MS = 60_000
"""Largest expected difference between the clocks of one fleet's processes and brokers."""
_FIRST_FEW = 3
"""A record's first deferrals, up to this number, use the smallest tier, however long the destination's queue is."""
_LONGEST_BUSY_SECONDS = 300.0
"""Largest delay in seconds in noticing that a busy destination has places again."""
_SMALLEST_TIER_SLACK = 0.1
"""The smallest slack, as a share of the smallest tier.

If less time is left, a round through the smallest tier is not worth its cost.
"""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The waits between attempts, in order, and the tiers: one for each wait, and some with lengths in between."""

    delays_seconds: tuple[float, ...] = TIER_DELAYS_SECONDS
    jitter: float = 0.1
    waits: tuple[float, ...] = field(init=False)
    """The distinct waits, the shortest first."""
    tiers: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.delays_seconds or min(self.delays_seconds) <= 0:
            raise ValueError("a schedule needs at least one wait, and each must be longer than 0 seconds")
        object.__setattr__(self, "waits", tuple(sorted(set(self.delays_seconds))))
        object.__setattr__(self, "tiers", tiers_of(self.delays_seconds))

    @property
    def smallest_tier(self) -> float:
        """Length of the smallest tier, in seconds."""
        return self.tiers[0]

    @property
    def length_seconds(self) -> float:
        """Longest possible sum of all waits, in seconds."""
        return sum(self.delays_seconds) * (1 + self.jitter)

    @property
    def longest_wait_ms(self) -> int:
        """The longest possible milliseconds from an attempt to the next one, by schedule or Retry-After."""
        by_schedule = max(self.delays_seconds) * (1 + self.jitter)
        by_request = MAX_RETRY_AFTER_SECONDS + self.slack_ms(len(self.delays_seconds)) / 1000
        return round(1000 * max(by_schedule, by_request))

    def slack_ms(self, attempt: int) -> int:
        """Return how many milliseconds before `not-before` a record is due after `attempt` attempts."""
        delay = self.delays_seconds[min(max(attempt, 1), len(self.delays_seconds)) - 1]
        return round(1000 * max(_SLACK * delay, _SMALLEST_TIER_SLACK * self.smallest_tier))


@dataclass(frozen=True, slots=True)
class Retry:
    """Wait in the tier of `tier_delay` seconds; try again at `not_before_ms` (Unix), or earlier by up to the slack."""

    tier_delay: float
    not_before_ms: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Dead-letter the record, with this reason."""

    reason: str


RetryDecision = Retry | GiveUp


def decide(attempt: int, outcome: FailedDelivery, now_ms: int, rng: random.Random, schedule: Schedule) -> RetryDecision:
    """Return the decision after attempt number `attempt`, which just failed; the first attempt is 1."""
    if outcome.reason is FailureReason.REFUSED:
        return GiveUp(REFUSED)
    if outcome.reason is FailureReason.GONE:
        return GiveUp(GONE)
    if attempt > len(schedule.delays_seconds):
        return GiveUp(EXHAUSTED)
    wait_ms = 1000 * schedule.delays_seconds[attempt - 1] * (1 + schedule.jitter * rng.random())
    if outcome.retry_after_seconds is not None:
        wait_ms = max(wait_ms, 1000 * outcome.retry_after_seconds + schedule.slack_ms(attempt))
    not_before_ms = now_ms + round(wait_ms)
    return Retry(hop(not_before_ms - now_ms, schedule.tiers), not_before_ms)


def left_ms(not_before_ms: int, now_ms: int, left_when_written_ms: int | None, tier_ms: int) -> int:
    """Return the milliseconds left of a record's wait when the record leaves a tier that is `tier_ms` long.

    `left_when_written_ms` is the time left when the record was written; None if the record does not state this time.
    Normally the clock decides. A tier may release a record late, or early if the clock of the record's timestamp is
    wrong. If the clock shows more time left than an early release explains, the clock is wrong, and
    `left_when_written_ms` decides.
    """
    by_clock = not_before_ms - now_ms
    if left_when_written_ms is None:
        return by_clock
    by_duration = max(0, left_when_written_ms - tier_ms)
    return by_clock if by_clock <= by_duration + tier_ms + CLOCKS_DIFFER_MS else by_duration


def is_early(left_ms: int, attempt: int, schedule: Schedule) -> bool:
    """True if `left_ms`, the time left of a record's wait after `attempt` attempts, is longer than the slack.

    False if `left_ms` exceeds the longest possible wait, because then the clock is wrong, or was wrong when the record
    was written.
    """
    return schedule.slack_ms(attempt) < left_ms <= schedule.longest_wait_ms


def busy_tier(turn_seconds: float, deferred: int, waits: tuple[float, ...]) -> float:
    """Return the tier for a record whose destination is busy, by the estimated seconds until the record's turn.

    `waits` are the schedule's waits, shortest first. Records in the smallest tier keep the destination busy until
    records return from longer tiers. A record uses a longer tier only if its turn comes after the tier's end, so that
    the record does not miss its turn. With longer tiers, a long queue need not be rewritten every few seconds. The
    first few deferrals use the smallest tier, since the estimate is poor at first. Tiers between the waits are not
    used, because the estimate counts records as they return (`QueueEstimate`), and would miss records in other
    tiers.
    """
    if deferred < _FIRST_FEW:
        return waits[0]
    return hop(round(1000 * min(turn_seconds, _LONGEST_BUSY_SECONDS)), waits)


def deferral_tier(left_alone_seconds: float, waited_ms: int, tiers: tuple[float, ...]) -> float:
    """Return the tier for a record whose origin gets no attempts: the longer the wait so far, the longer the tier.

    Each round rewrites the record. With a round for each probe, a long outage would write each record a thousand times.
    With growing tiers an outage of days writes each record some fifty times, and an outage of a minute five times. The
    callback is late by at most a third of the outage. After a short outage the callback is late by at most half of the
    outage or five minutes, whichever is shorter, but always by up to thirty seconds.

    The function returns the shortest tier that ends after the next probe and keeps these limits. If there is none, it
    returns the largest tier that fits, or else the smallest.
    """
    waited_seconds = waited_ms / 1000
    wanted = max(left_alone_seconds, _ASKS_AFTER * waited_seconds)
    past_probe = left_alone_seconds + min(max(left_alone_seconds, _SHORTLY_SECONDS), _LATE_SECONDS)
    longest = max(past_probe, _LATE_BY * waited_seconds, min(waited_seconds / 2, _LATE_SECONDS))
    enough = [tier for tier in tiers if wanted <= tier <= longest]
    return enough[0] if enough else hop(round(1000 * wanted), tiers)


def due_ms(appended_ms: int, tier_delay: float) -> int:
    """Return the time at which a record leaves its tier, in Unix milliseconds."""
    return appended_ms + round(1000 * tier_delay)
