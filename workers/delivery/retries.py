"""When a callback is tried again, as pure functions over values.

Attempt n is followed by the n-th of the schedule's waits; after the last, by nothing. A wait is spent in the topic (the
tier) of that length, in which every record waits equally long, so that the tier is a queue and its consumer needs to
look at the first record only. What a record waits beyond that stands in its `not-before`: a record that leaves its tier
early hops on, to the largest tier that fits what is left. A hop is no attempt. What is left is said twice, as a time
and as a duration, so that a clock that is set back, or is behind those of other processes, makes no wait much longer.

Jitter makes a wait up to 10 % longer and never shorter, since no record leaves its tier before its time: whatever
failed together comes back apart. It is met to within 2 % of the wait (the slack): chasing the rest of a long wait
through the smallest tiers would write a record many times for nothing. A `Retry-After` is a floor and is met in full.
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
"""Of the time that a record has waited: how long it waits on for an origin that is left alone."""
_LATE_BY = 1 / 3
"""Of the same: how late it may be noticed that the origin answers again."""
_LATE_SECONDS = 300.0
"""The same where it has not waited for long."""
CLOCKS_DIFFER_MS = 60_000
"""Clocks of one fleet may differ by so much."""
_FIRST_FEW = 3
"""So often a busy destination is asked again soon, whatever waits for it."""
_LONGEST_BUSY_SECONDS = 300.0
"""How late it may be noticed that a busy destination has places again."""
_SMALLEST_TIER_SLACK = 0.1
"""Of the smallest tier: no record goes another round through it for less."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The waits between attempts, in their order, and the tiers, shortest first: one of each, and those between."""

    delays_seconds: tuple[float, ...] = TIER_DELAYS_SECONDS
    jitter: float = 0.1
    waits: tuple[float, ...] = field(init=False)
    """Each once, shortest first."""
    tiers: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.delays_seconds or min(self.delays_seconds) <= 0:
            raise ValueError("a schedule needs at least one wait, and all of them longer than nothing")
        object.__setattr__(self, "waits", tuple(sorted(set(self.delays_seconds))))
        object.__setattr__(self, "tiers", tiers_of(self.delays_seconds))

    @property
    def smallest_tier(self) -> float:
        """Where deferred records wait, seconds."""
        return self.tiers[0]

    @property
    def length_seconds(self) -> float:
        """How long all of its waits take together, at the most."""
        return sum(self.delays_seconds) * (1 + self.jitter)

    @property
    def longest_wait_ms(self) -> int:
        """The longest that can lie between an attempt and the next, by the schedule or by a Retry-After."""
        by_schedule = max(self.delays_seconds) * (1 + self.jitter)
        by_request = MAX_RETRY_AFTER_SECONDS + self.slack_ms(len(self.delays_seconds)) / 1000
        return round(1000 * max(by_schedule, by_request))

    def slack_ms(self, attempt: int) -> int:
        """How much before its `not-before` a record is due that has had this many attempts."""
        delay = self.delays_seconds[min(max(attempt, 1), len(self.delays_seconds)) - 1]
        return round(1000 * max(_SLACK * delay, _SMALLEST_TIER_SLACK * self.smallest_tier))


@dataclass(frozen=True, slots=True)
class Retry:
    """Wait in this tier (its length in seconds); try again at `not_before_ms` (Unix), or up to the slack before."""

    tier_delay: float
    not_before_ms: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Dead-letter it, with this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    """It is delivered."""


RetryDecision = Retry | GiveUp | Done


def decide(attempt: int, outcome: PostOutcome, now_ms: int, rng: random.Random, schedule: Schedule) -> RetryDecision:
    """What follows the attempt that just ended; the first attempt is 1."""
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
    """What is left of a record's wait when it comes out of a tier that is `tier_ms` long.

    By the clock, since a tier may let go late, or early where the clock that stamps it is wrong, so that the record has
    not waited all of it. Where the clock claims more than even that explains, it is the clock that is wrong, and what
    was left when the record was written counts. None: whoever wrote it did not say.
    """
    by_clock = not_before_ms - now_ms
    if left_when_written_ms is None:
        return by_clock
    by_duration = max(0, left_when_written_ms - tier_ms)
    return by_clock if by_clock <= by_duration + tier_ms + CLOCKS_DIFFER_MS else by_duration


def is_early(left_ms: int, attempt: int, schedule: Schedule) -> bool:
    """Whether a record that has had this many attempts, and of whose wait so much is left, must wait on.

    What is longer than any wait can be was written, or is read, by a clock that is wrong: it counts as nothing.
    """
    return schedule.slack_ms(attempt) < left_ms <= schedule.longest_wait_ms


def busy_tier(turn_seconds: float, deferred: int, waits: tuple[float, ...]) -> float:
    """Where a record is deferred whose destination has its share, until its turn comes in so many seconds.

    `waits` are the schedule's, shortest first. What goes round the smallest tier keeps the destination busy until what
    waits longer is back, so only what has no turn until then waits longer: nobody's turn is missed, and a long line is
    not written anew every few seconds. The first few times say little of how long the line is. Those between the waits
    are no choice: who waits there would be missing from the line, which is counted as it comes round (`crowd.py`).
    """
    if deferred < _FIRST_FEW:
        return waits[0]
    return hop(round(1000 * min(turn_seconds, _LONGEST_BUSY_SECONDS)), waits)


def deferral_tier(left_alone_seconds: float, waited_ms: int, tiers: tuple[float, ...]) -> float:
    """Where a record is deferred that does well to wait so long for its origin; the longer, the longer it has waited.

    Each time it comes round it is written anew. Whoever asks as often as the origin is tried writes each record of a
    long outage a thousand times; this way it is some forty times, seventy where it was there from the beginning, and
    late by a third of the outage at most, or where that is short by as long again as it is told to wait, five minutes
    at most.

    The tier that is long enough, if that is no longer than this; else the largest that fits, or the smallest.
    """
    waited_seconds = waited_ms / 1000
    wanted = max(left_alone_seconds, _ASKS_AFTER * waited_seconds)
    longest = max(left_alone_seconds + min(left_alone_seconds, _LATE_SECONDS), _LATE_BY * waited_seconds)
    enough = [tier for tier in tiers if wanted <= tier <= longest]
    return enough[0] if enough else hop(round(1000 * wanted), tiers)


def hop(left_ms: int, tiers: tuple[float, ...]) -> float:
    """The largest tier that fits what is left, else the smallest there is. `tiers` are seconds, shortest first."""
    fitting = [tier for tier in tiers if 1000 * tier <= left_ms]
    return fitting[-1] if fitting else tiers[0]


def due_ms(appended_ms: int, tier_delay: float) -> int:
    """When a tier's record leaves it, Unix milliseconds."""
    return appended_ms + round(1000 * tier_delay)
