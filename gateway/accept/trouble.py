"""Counts how often a thread that works on Kafka and the store has failed in a row."""

from __future__ import annotations

from confluent_kafka import KafkaException

from gateway.store.errors import StoreAway
from telemetry.clock import Clock

LONGEST_REST_SECONDS = 5.0
_FIRST_REST_SECONDS = 0.1
_MOST_FAILURES = 10


class Trouble:
    """Counts failures in a row. A single thread reports to a Trouble; any thread may ask for `lasting`."""

    def __init__(self, clock: Clock, silent_seconds: float) -> None:
        """`silent_seconds` is the time without success after which the trouble is lasting."""
        self._clock = clock
        self._silent_seconds = silent_seconds
        self._failures = 0
        self._since: float | None = None
        self.problem = ""
        """The last failure, as a phrase or Kafka's name for it."""

    @property
    def lasting(self) -> str | None:
        """The last failure, if there was no success for `silent_seconds`; else None."""
        since = self._since
        if since is None or self._clock.monotonic() - since < self._silent_seconds:
            return None
        return self.problem

    def failed(self, error: KafkaException | StoreAway) -> float:
        """Note a failure; return the seconds to rest before the next try."""
        self.problem = error.args[0].name() if isinstance(error, KafkaException) else str(error)
        self._since = self._since or self._clock.monotonic()
        self._failures = min(self._failures + 1, _MOST_FAILURES)
        return min(LONGEST_REST_SECONDS, _FIRST_REST_SECONDS * float(2 ** (self._failures - 1)))

    def succeeded(self) -> bool:
        """Note a success; return True if it ends a series of failures."""
        ended = self._since is not None
        self._failures, self._since = 0, None
        return ended
