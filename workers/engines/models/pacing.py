"""Rate limits of one model: requests wait for their turn in the worker instead of being refused by a service."""

from __future__ import annotations

from telemetry.clock import Clock
from workers.engines.models.entries import RateLimits

_REQUEST_BURST_SECONDS = 1.0
_TOKEN_BURST_SECONDS = 6.0
"""After a pause, requests may at once use as much as the limit allows for this many seconds."""


class RateLimit:
    """One limit, by the generic cell rate algorithm (ITU-T I.371): a request's cost delays the next request's turn."""

    def __init__(self, per_second: float, burst_seconds: float, clock: Clock) -> None:
        self._per_second = per_second
        self._burst_seconds = burst_seconds
        self._clock = clock
        self._next_at = clock.monotonic() - burst_seconds

    def reserve(self, cost: float) -> float:
        """Take a turn, and return the seconds until the turn. Turns come in the order of the calls."""
        now = self._clock.monotonic()
        at = max(self._next_at, now - self._burst_seconds)
        self._next_at = at + cost / self._per_second
        return max(0.0, at - now)

    def settle(self, difference: float) -> None:
        """Correct the cost of an earlier turn by the `difference` of the turn's real and reserved cost."""
        self._next_at += difference / self._per_second


class RateGate:
    """The limits of one model; a missing limit lets every request pass."""

    def __init__(self, limits: RateLimits, clock: Clock) -> None:
        requests, tokens = limits.requests_per_second, limits.tokens_per_minute
        self._requests = RateLimit(requests, _REQUEST_BURST_SECONDS, clock) if requests else None
        self._tokens = RateLimit(tokens / 60, _TOKEN_BURST_SECONDS, clock) if tokens else None

    def reserve(self, tokens: int) -> float:
        """Take a turn for a request of about this many tokens, and return the seconds until the turn."""
        by_requests = self._requests.reserve(1) if self._requests is not None else 0.0
        by_tokens = self._tokens.reserve(tokens) if self._tokens is not None else 0.0
        return max(by_requests, by_tokens)

    def settle(self, reserved: int, used: int) -> None:
        """Replace a turn's `reserved` tokens by the `used` ones; `used` is 0 if the request was never sent."""
        if self._tokens is not None:
            self._tokens.settle(used - reserved)
