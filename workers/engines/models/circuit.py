"""The circuit breaker of one address: failures in a row stop its requests for a while, then one request is tried."""

from __future__ import annotations

from telemetry.clock import Clock
from workers.engines.models.entries import Circuit


class AddressCircuit:
    """Follows the outcomes of one address's requests, which are numbered in the order of their start."""

    def __init__(self, settings: Circuit, clock: Clock) -> None:
        self.settings = settings
        self._clock = clock
        self._begun = 0
        self._newest_answered = 0
        self._failures = 0
        self._answered_since_failure = False
        self._open_until: float | None = None
        self._trying: int | None = None

    @property
    def is_open(self) -> bool:
        """True after too many failures in a row, until the next answer."""
        return self._open_until is not None

    @property
    def admits(self) -> bool:
        """True if the address may get a request now."""
        if self._open_until is None:
            return True
        return self._trying is None and self._clock.monotonic() >= self._open_until

    def begin(self) -> int:
        """Count a request and return its number. If the circuit is open, this request is the trial."""
        self._begun += 1
        if self.is_open:
            self._trying = self._begun
        return self._begun

    def answered(self, number: int) -> None:
        """Close the circuit, because the address answered this request or refused only this request."""
        self._newest_answered = max(self._newest_answered, number)
        self._answered_since_failure = True
        self._failures = 0
        self._open_until = None

    def failed(self, number: int, *, took_too_long: bool = False) -> bool:
        """Count a failure. Return True if the request may be to blame, because the address answers other requests.

        A timeout may be the request's fault only if the address answered a request that began later, because a merely
        slow address answers earlier requests first.
        """
        to_blame = self._newest_answered > number if took_too_long else self._answered_since_failure
        self._answered_since_failure = False
        self._failures += 1
        if self._failures >= self.settings.failures or self._trying == number:
            self._open_until = self._clock.monotonic() + self.settings.seconds
        return to_blame

    def ended(self, number: int) -> None:
        """Note the end of a request with any outcome. After a trial, an open circuit may admit the next trial."""
        if self._trying == number:
            self._trying = None
