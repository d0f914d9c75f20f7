"""A circuit breaker stops attempts at a failing origin for a time, then lets one attempt through, the probe.

The module does no I/O and reads no clock.

    closed ──── too many failures in a row, too large a share of the last 64 attempts, or a Retry-After ───► open
    open ────── its time is over ───► half-open
    half-open ─ its one probe succeeds ───► closed
    half-open ─ its one probe fails ───► open, for twice as long, up to the longest time

An answer that rejects the event counts as a success: a 404 closes a breaker as a 200 does. Times are seconds of a
monotonic clock.
"""

from __future__ import annotations

from enum import Enum, StrEnum

from workers.delivery.post import Delivered, FailureReason, PostOutcome
from workers.delivery.settings import DeliverySettings

_RECENT = 64
"""Number of most recent attempts over which the share of failures is counted."""
_ALL_BITS = (1 << _RECENT) - 1

_LONGEST_ASKED_SECONDS = 3600.0
_SHORT_SECONDS = 30.0
"""Limit on the open time, while the outage is short."""
_OUTAGE_SHARE = 0.05
"""Limit on the open time as a share of a long outage. Each probe spends an event's attempt, so they become rarer."""

_ANSWERS = frozenset({FailureReason.CLIENT_ERROR, FailureReason.REDIRECTED, FailureReason.GONE})
_TELLS_WHEN = frozenset({FailureReason.THROTTLED, FailureReason.SERVER_ERROR})


class BreakerState(StrEnum):
    """The states of a breaker, as the module's docstring draws them."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class OriginSignal(Enum):
    """The verdict that one attempt gives on the health of its origin."""

    ANSWERS = "answers"
    FAILS = "fails"
    NOTHING = "nothing"
    """No verdict: the egress guard refused the URL, so no request was sent."""


def signal_of(outcome: PostOutcome) -> OriginSignal:
    """Return the verdict that an attempt's outcome gives on the attempt's origin."""
    if isinstance(outcome, Delivered) or outcome.reason in _ANSWERS:
        return OriginSignal.ANSWERS
    return OriginSignal.NOTHING if outcome.reason is FailureReason.REFUSED else OriginSignal.FAILS


def asked_to_wait(outcome: PostOutcome) -> float:
    """Return the seconds for which a Retry-After stops attempts at the whole origin: an hour at most.

    Return 0 unless the outcome is a 429 or a 5xx. The event itself waits for the full Retry-After. The cap protects the
    origin's other URLs, since the answer may not concern them.
    """
    if isinstance(outcome, Delivered) or outcome.reason not in _TELLS_WHEN:
        return 0.0
    return min(outcome.retry_after_seconds or 0.0, _LONGEST_ASKED_SECONDS)


class Breaker:
    """The breaker of one origin."""

    def __init__(self, settings: DeliverySettings) -> None:
        self._settings = settings
        self.is_open = False
        """False if the breaker is closed; True if it is open or half-open."""
        self._until = 0.0
        self._seconds = 0.0
        self._asked = False
        """True if the present open time comes from the origin's Retry-After, not from failures."""
        self._failures = 0
        """Failures in a row."""
        self._openings = 0
        """Number of times that failures opened the breaker since it was last closed."""
        self._failing_since = 0.0
        """Time of the first of these openings."""
        self._recent = 0
        """The most recent attempts as bits; the lowest bit is the newest attempt, and 1 is a failure."""
        self._counted = 0
        self._failed_after = 0.0
        """Seconds that the last failed attempt took."""
        self._probing_since: float | None = None

    def state(self, now: float) -> BreakerState:
        """Return the state at the time `now`."""
        if not self.is_open:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._until else BreakerState.HALF_OPEN

    def seconds_left(self, now: float) -> float:
        """Return the seconds until the breaker's open time ends; 0 if it has ended, or if the breaker is closed."""
        return max(0.0, self._until - now) if self.is_open else 0.0

    def patience(self, now: float) -> float:
        """Return the seconds until the next probe may start, or until the probe under way is expected to end.

        A probe is expected to take as long as the last failed attempt.
        """
        if self._probing_since is None:
            return self.seconds_left(now)
        return max(0.0, self._probing_since + self._failed_after - now)

    def is_dead(self, now: float) -> bool:
        """True while the breaker is open for its longest time because of failures, not at the origin's request."""
        longest = self._settings.breaker_longest_seconds
        return self.state(now) is BreakerState.OPEN and self._seconds >= longest and not self._asked

    @property
    def pristine(self) -> bool:
        """True if the breaker is closed and remembers no failure."""
        return not (self.is_open or self._failures or self._recent)

    @property
    def confident(self) -> bool:
        """True if each of the last 64 attempts was answered, so that one more answer does not change the breaker."""
        return self._counted == _RECENT and self.pristine

    def take_probe(self, now: float) -> bool:
        """Reserve the probe for the caller, and return True; return False if no probe may start now.

        After True, the caller must call `judge` or `give_back_probe`.
        """
        if self._probing_since is not None or self.state(now) is not BreakerState.HALF_OPEN:
            return False
        self._probing_since = now
        return True

    def give_back_probe(self) -> None:
        """Release the probe without a verdict, so that another attempt may take the probe."""
        self._probing_since = None

    def judge(
        self, verdict: OriginSignal, now: float, *, probe: bool, wait_seconds: float = 0.0, took_seconds: float = 0.0
    ) -> None:
        """Apply an attempt's verdict and duration. `wait_seconds` is the wait that the origin asked for."""
        if verdict is OriginSignal.FAILS:
            self._failed_after = took_seconds
        if probe:
            self._probing_since = None
            self._judge_probe(verdict, now)
        elif not self.is_open:
            self._judge_usual(verdict, now)
        # While the breaker is open, only a probe's verdict counts, because other attempts began before the breaker
        # opened.
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
        if not self._openings:
            self._failing_since = now
        first = self._settings.breaker_open_seconds
        limit = max(first, _SHORT_SECONDS, _OUTAGE_SHARE * (now - self._failing_since))
        seconds = min(first * 2 ** min(self._openings, 30), limit, self._settings.breaker_longest_seconds)
        self._openings += 1
        self._asked = False
        self._open_for(seconds, now)

    def _open_for(self, seconds: float, now: float) -> None:
        self.is_open = True
        self._until = now + seconds
        self._seconds = seconds

    def _close(self) -> None:
        self.is_open = False
        self._failures = self._openings = self._recent = self._counted = 0
