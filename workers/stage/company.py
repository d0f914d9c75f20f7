"""How long what is complete waits for company in its transaction.

A transaction costs Kafka the same whether it carries one record or a thousand. Jobs that take seconds, as those of an
engine do, come back one by one; a small part of the time that they took is nothing to them, and saves most
transactions. Jobs that take no time wait for nobody, unless the stage says that nobody waits for what it settles.
"""

from __future__ import annotations

SHARE = 0.02
"""Of the time that handling took."""
MOST_SECONDS = 0.025
_WEIGHT = 0.05
"""Of the newest record in the moving average."""


class Company:
    """A moving average over the records of one stage. The Kafka thread owns it."""

    def __init__(self, least_seconds: float = 0.0) -> None:
        self._least_seconds = least_seconds
        self._average = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """How long a record that is complete may wait for others."""
        return max(self._least_seconds, self._average)

    def came(self, took_seconds: float, now: float) -> None:
        """A record is complete `now` (monotonic seconds), after so long a handling."""
        self._average += _WEIGHT * (min(MOST_SECONDS, SHARE * took_seconds) - self._average)
        if self._since is None:
            self._since = now

    def left(self) -> None:
        """What was complete is settled, or of no use any more."""
        self._since = None

    def expects(self, now: float) -> bool:
        """Whether the first of those that are complete still waits."""
        return self._since is not None and now - self._since < self.seconds
