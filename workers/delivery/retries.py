"""The times of a callback's retries, as pure functions over values.

The schedule's n-th wait follows attempt n; after the last wait comes the last attempt. A record waits in the topic (the
tier) of that length. All records of a tier wait equally long, so the tier is a queue, and its consumer looks at the
first record only. A longer wait stands in the record's `not-before`: a record that leaves its tier early hops on, to
the largest tier that fits the time left. A hop is no attempt. The time left is written twice, as a time and as a
duration. So a clock that is set back, or is behind other processes' clocks, makes no wait much longer.

Jitter makes a wait up to 10 % longer and never shorter, since no record leaves its tier before its time. It spreads
callbacks that failed together. A wait is met to within 2 % (the slack). Chasing the rest of a long wait through the
smallest tiers would write a record many times for nothing. A `Retry-After` is a minimum and is met in full.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from schemas.topics import TIER_DELAYS_SECONDS, tiers_of
from workers.delivery.post import Delivered, FailureReason, PostOutcome
from workers.egress.retry_after import MAX_RETRY_AFTER_SECONDS

EXHAUSTED = "callback_exhausted"
REFUSED = "callback_refused"
GONE = "endpoint_gone"

_SLACK = 0.02
_ASKS_AFTER = 0.25
"""Further wait of a record for an origin that is left alone, as a share of its wait so far."""
_LATE_BY = 1 / 3
"""Largest delay in noticing that the origin answers again, as a share of the wait so far."""
_LATE_SECONDS = 300.0
"""Largest such delay, beyond the time that the origin is left alone, for a record with a short wait so far."""
CLOCKS_DIFFER_MS = 60_000
"""Largest difference between the clocks of one fleet."""
_FIRST_FEW = 3
"""First deferrals for a busy destination that use the smallest tier, however long its queue is."""
_LONGEST_BUSY_SECONDS = 300.0
"""Largest delay in noticing that a busy destination has places again."""
_SMALLEST_TIER_SLACK = 0.1
"""Least slack, as a share of the smallest tier: no record goes another round through it for less."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The waits between attempts, in their order, and the tiers, shortest first: one a wait, and some in between."""

    delays_seconds: tuple[float, ...] = TIER_DELAYS_SECONDS
    jitter: float = 0.1
    waits: tuple[float, ...] = field(init=False)
    """Each wait once, shortest first."""
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
        """Longest sum of all its waits."""
        return sum(self.delays_seconds) * (1 + self.jitter)

    @property
    def longest_wait_ms(self) -> int:
        """The longest possible time between an attempt and the next, by the schedule or by a Retry-After."""
        by_schedule = max(self.delays_seconds) * (1 + self.jitter)
        by_request = MAX_RETRY_AFTER_SECONDS + self.slack_ms(len(self.delays_seconds)) / 1000
        return round(1000 * max(by_schedule, by_request))

    def slack_ms(self, attempt: int) -> int:
        """Milliseconds before its `not-before` at which a record with this many attempts is due."""
        delay = self.delays_seconds[min(max(attempt, 1), len(self.delays_seconds)) - 1]
        return round(1000 * max(_SLACK * delay, _SMALLEST_TIER_SLACK * self.smallest_tier))


@dataclass(frozen=True, slots=True)
class Retry:
    """Wait in this tier (its length in seconds); try again at `not_before_ms` (Unix), or up to the slack before."""

    tier_delay: float
    not_before_ms: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Dead-letter the record, with this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """The event is delivered."""


RetryDecision = Retry | GiveUp | Done


def decide(attempt: int, outcome: PostOutcome, now_ms: int, rng: random.Random, schedule: Schedule) -> RetryDecision:
    """The decision after the attempt that just ended; the first attempt is 1."""
    if isinstance(outcome, Delivered):
        return Done()
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
    """Milliseconds left of a record's wait when it leaves a tier that is `tier_ms` long.

    The clock decides, since a tier may release a record late, or early if its stamping clock is wrong. If the clock
    claims more than that explains, the clock is wrong, and the time left when the record was written decides. A record
    without that time has None.
    """
    by_clock = not_before_ms - now_ms
    if left_when_written_ms is None:
        return by_clock
    by_duration = max(0, left_when_written_ms - tier_ms)
    return by_clock if by_clock <= by_duration + tier_ms + CLOCKS_DIFFER_MS else by_duration


def is_early(left_ms: int, attempt: int, schedule: Schedule) -> bool:
    """True if a record with this many attempts, and this much of its wait left, must wait on.

    A time left beyond the longest possible wait comes from a wrong clock, at its writing or now, and counts as none.
    """
    return schedule.slack_ms(attempt) < left_ms <= schedule.longest_wait_ms


def busy_tier(turn_seconds: float, deferred: int, waits: tuple[float, ...]) -> float:
    """The tier for a record whose destination is busy, by the estimated seconds until its turn.

    `waits` are the schedule's, shortest first. Records in the smallest tier keep the destination busy until those in
    longer tiers return. Only a record whose turn is later waits there, so that no turn is missed, and a long queue is
    not written anew every few seconds. The first few deferrals say little about the queue's length. Tiers between the
    waits are not used: their records would be missing from the estimate, which counts them as they come round
    (`queue_estimate.py`).
    """
    if deferred < _FIRST_FEW:
        return waits[0]
    return hop(round(1000 * min(turn_seconds, _LONGEST_BUSY_SECONDS)), waits)


def deferral_tier(left_alone_seconds: float, waited_ms: int, tiers: tuple[float, ...]) -> float:
    """The tier for a record whose origin is left alone: the longer it has waited so far, the longer its tier.

    Each round writes the record anew. With a round for each probe, a long outage would write each record a thousand
    times. This way it is some forty times, seventy for a record from the outage's beginning. Its callback is late by a
    third of the outage at most. After a short outage it is late by as long again as the origin is left alone, five
    minutes at most.

    Returns the shortest tier that is long enough, if it keeps to that lateness; else the largest that fits, or the
    smallest.
    """
    waited_seconds = waited_ms / 1000
    wanted = max(left_alone_seconds, _ASKS_AFTER * waited_seconds)
    longest = max(left_alone_seconds + min(left_alone_seconds, _LATE_SECONDS), _LATE_BY * waited_seconds)
    enough = [tier for tier in tiers if wanted <= tier <= longest]
    return enough[0] if enough else hop(round(1000 * wanted), tiers)


def hop(left_ms: int, tiers: tuple[float, ...]) -> float:
    """The largest tier that fits the time left, else the smallest. `tiers` are seconds, shortest first."""
    fitting = [tier for tier in tiers if 1000 * tier <= left_ms]
    return fitting[-1] if fitting else tiers[0]


def due_ms(appended_ms: int, tier_delay: float) -> int:
    """Time at which a record leaves its tier, Unix milliseconds."""
    return appended_ms + round(1000 * tier_delay)
