"""A circuit breaker: when an origin is left alone, for how long, and how it is found to be back. No I/O, no clock.

    closed ──── so many failures in a row, or too large a share of the last 64 attempts, or a Retry-After ───► open
    open ────── its time is over ───► half-open
    half-open ─ its one probe succeeds ───► closed
    half-open ─ its one probe fails ───► open, for twice as long

What counts is whether the origin answers, not whether it likes the event: a 404 closes a breaker as a 200 does. Times
are seconds of a monotonic clock.
"""

from __future__ import annotations

from enum import Enum, StrEnum

from workers.delivery.post import Delivered, FailureReason, PostOutcome
from workers.delivery.settings import DeliverySettings

_RECENT = 64
"""How many attempts the share of failures is counted over."""
_ALL_BITS = (1 << _RECENT) - 1

_LONGEST_ASKED_SECONDS = 3600.0

_ANSWERS = frozenset({FailureReason.CLIENT_ERROR, FailureReason.REDIRECTED, FailureReason.GONE})
_TELLS_WHEN = frozenset({FailureReason.THROTTLED, FailureReason.SERVER_ERROR})


class BreakerState(StrEnum):
    """See the module's drawing."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class OriginSignal(Enum):
    """What an attempt says of the origin that it was made at."""

    ANSWERS = "answers"
    FAILS = "fails"
    NOTHING = "nothing"
    """The guard refused, so nobody was asked; or the attempt was cut off from our side."""


def signal_of(outcome: PostOutcome) -> OriginSignal:
    """What an outcome says of the origin."""
    if isinstance(outcome, Delivered) or outcome.reason in _ANSWERS:
        return OriginSignal.ANSWERS
    return OriginSignal.NOTHING if outcome.reason is FailureReason.REFUSED else OriginSignal.FAILS


def asked_to_wait(outcome: PostOutcome) -> float:
    """Seconds for which all of the origin is left alone: the Retry-After of a 429 or a 5xx, an hour at most; else 0.

    The event that it came for waits for all of it. But one URL of many may have meant itself alone.
    """
    if isinstance(outcome, Delivered) or outcome.reason not in _TELLS_WHEN:
        return 0.0
    return min(outcome.retry_after_seconds or 0.0, _LONGEST_ASKED_SECONDS)


class Breaker:
    """The breaker of one origin."""

    def __init__(self, settings: DeliverySettings) -> None:
        self._settings = settings
        self._open = False
        self._until = 0.0
        self._seconds = 0.0
        self._asked = False
        """Whether it is open for so long since the origin said so."""
        self._failures = 0
        """In a row."""
        self._openings = 0
        """In a row."""
        self._recent = 0
        """The last attempts as bits, the last one lowest; 1 is a failure."""
        self._counted = 0
        self._failed_after = 0.0
        """How long the last failure took to be one."""
        self._probing_since: float | None = None

    def state(self, now: float) -> BreakerState:
        """Where it stands."""
        if not self._open:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._until else BreakerState.HALF_OPEN

    def seconds_left(self, now: float) -> float:
        """How long it stays open."""
        return max(0.0, self._until - now) if self._open else 0.0

    def leaves_alone(self, now: float) -> bool:
        """Whether nobody may be let through: until its time is over, and while its probe is under way."""
        return self._open and (self._probing_since is not None or now < self._until)

    def patience(self, now: float) -> float:
        """How long whoever is turned away does well to wait.

        No less than it is open in all, the longest time at most; and while there is a probe, until that has taken as
        long as the last failure did. What comes round every few seconds until then costs more than what comes late by
        as long again.
        """
        seconds = max(self.seconds_left(now), min(self._seconds, self._settings.breaker_longest_seconds))
        if self._probing_since is None:
            return seconds
        return max(seconds, self._probing_since + self._failed_after - now)

    def is_dead(self, now: float) -> bool:
        """Whether probe after probe has failed, until it is left alone for the longest time: not for having asked."""
        longest = self._settings.breaker_longest_seconds
        return self.state(now) is BreakerState.OPEN and self._seconds >= longest and not self._asked

    @property
    def pristine(self) -> bool:
        """Whether there is nothing about the origin that needs to be remembered."""
        return not (self._open or self._failures or self._recent)

    @property
    def confident(self) -> bool:
        """Whether all attempts that are counted were answered, so that another answer changes nothing."""
        return self._counted == _RECENT and self.pristine

    def take_probe(self, now: float) -> bool:
        """Whether the caller may make the one attempt of a half-open breaker. It has to be judged, or given back."""
        if self._probing_since is not None or self.state(now) is not BreakerState.HALF_OPEN:
            return False
        self._probing_since = now
        return True

    def give_back_probe(self) -> None:
        """The probe has come to nothing: somebody else may make it."""
        self._probing_since = None

    def judge(
        self, verdict: OriginSignal, now: float, *, probe: bool, wait_seconds: float = 0.0, took_seconds: float = 0.0
    ) -> None:
        """Take in what an attempt has shown, and how long it took. `wait_seconds` is what the origin asked for."""
        if verdict is OriginSignal.FAILS:
            self._failed_after = took_seconds
        if probe:
            self._probing_since = None
            self._judge_probe(verdict, now)
        elif not self._open:
            self._judge_usual(verdict, now)
        # else it was on its way when the breaker opened, and says nothing new
        if wait_seconds > self.seconds_left(now):
            self._open_for(wait_seconds, now)
            self._asked = True

    def _judge_probe(self, verdict: OriginSignal, now: float) -> None:
        if verdict is OriginSignal.ANSWERS:
            self._close()
        elif verdict is OriginSignal.FAILS:
            self._trip(now)

    def _judge_usual(self, verdict: OriginSignal, now: float) -> None:
        if verdict is OriginSignal.NOTHING:
            return
        failed = verdict is OriginSignal.FAILS
        self._failures = self._failures + 1 if failed else 0
        self._recent = (self._recent << 1 | failed) & _ALL_BITS
        self._counted = min(self._counted + 1, _RECENT)
        if failed and (self._failures >= self._settings.breaker_failures or self._fails_too_often):
            self._trip(now)

    @property
    def _fails_too_often(self) -> bool:
        return self._counted == _RECENT and self._recent.bit_count() >= self._settings.breaker_failure_share * _RECENT

    def _trip(self, now: float) -> None:
        longest = self._settings.breaker_longest_seconds
        seconds = min(self._settings.breaker_open_seconds * 2 ** min(self._openings, 30), longest)
        self._openings += 1
        self._asked = False
        self._open_for(seconds, now)

    def _open_for(self, seconds: float, now: float) -> None:
        self._open = True
        self._until = now + seconds
        self._seconds = seconds

    def _close(self) -> None:
        self._open = False
        self._failures = self._openings = self._recent = self._counted = 0
