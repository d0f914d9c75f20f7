"""Group commit: how long a complete record waits for others to share its transaction.

A transaction costs Kafka the same for one record as for a thousand. An engine's jobs take seconds and return one by
one: a small part of that time adds little to a job's latency, and saves most transactions. Jobs that take no time do
not wait, unless the stage says that no reader waits for their outputs.

Composing a transaction holds the interpreter for a millisecond or two; the event loop begins a few records in less. So
after a round that handed over a few records, the transaction waits for one more round, once.

Lingering records wait longer, for others of their kind. Each transaction with one of them writes to one topic more and
ends there too, and the next fetch brings that marker before the records that a reader waits for.
"""

from __future__ import annotations

from workers.stage.runner import Handled

SHARE = 0.02
"""The wait, as a part of the time that handling took."""
MOST_SECONDS = 0.025
"""The longest wait."""
_WEIGHT = 0.05
"""The weight of the newest record in the moving average."""
FEW_RECORDS = 8
"""The most records for which a transaction waits a round; of more, each would gain little."""
LINGER_SECONDS = 0.5
LINGER_RECORDS = 100
LINGER_BYTES = 4 * 1024 * 1024
"""A quarter of the smallest window, which stops fetching once it is full."""


class GroupCommit:
    """The wait of one stage, from a moving average over its records. The Kafka thread owns it."""

    def __init__(self, least_seconds: float = 0.0) -> None:
        self._least_seconds = least_seconds
        self._average = 0.0
        self._since: float | None = None
        self.made_way = False
        """Whether the pending records have waited for a round, so that others could begin."""

    @property
    def seconds(self) -> float:
        """How long a complete record may wait for others."""
        return max(self._least_seconds, self._average)

    def came(self, took_seconds: float, now: float) -> None:
        """Count a record that is complete `now` (monotonic seconds), after a handling of `took_seconds`."""
        self._average += _WEIGHT * (min(MOST_SECONDS, SHARE * took_seconds) - self._average)
        if self._since is None:
            self._since = now

    def left(self) -> None:
        """Note that no complete record waits any more."""
        self._since, self.made_way = None, False

    def expects(self, now: float) -> bool:
        """Return whether the first complete record still waits for others."""
        return self._since is not None and now - self._since < self.seconds

    def makes_way(self, handed_over: int) -> bool:
        """Return whether the complete records wait for one more round, after `handed_over` records in this one."""
        if self._since is None or self.made_way or not 0 < handed_over <= FEW_RECORDS:
            return False
        self.made_way = True
        return True


class Lingering:
    """Completions that may be settled later, in the order of their arrival. The Kafka thread owns it."""

    def __init__(self) -> None:
        self.completions: list[Handled] = []
        self._since = 0.0
        self._bytes = 0

    def add(self, completion: Handled, now: float) -> None:
        """Add a completion. `now`: monotonic seconds."""
        if not self.completions:
            self._since, self._bytes = now, 0
        self.completions.append(completion)
        self._bytes += len(completion.record.value)

    def over(self, now: float) -> list[Handled]:
        """Take all out, once the first has waited for LINGER_SECONDS or there are many; else return none."""
        much = len(self.completions) >= LINGER_RECORDS or self._bytes >= LINGER_BYTES
        return self.end() if much or now >= self._since + LINGER_SECONDS else []

    def end(self) -> list[Handled]:
        """Take all out."""
        ended, self.completions = self.completions, []
        return ended
