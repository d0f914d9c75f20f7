"""Group commit: a complete record waits a short time for other records to share its transaction.

A transaction costs Kafka the same for one record as for a thousand. An engine's jobs take seconds and return one by
one: a wait of a small part of these seconds adds little latency, and saves most transactions. Jobs that take no time do
not wait, unless `group_commit_seconds` sets a shortest wait. This setting is meant for outputs that no reader waits
for.

Composing a transaction holds the interpreter lock for a millisecond or two. The event loop needs less time to begin a
few records, so the records go first: after a round that handed over a few records, the transaction waits for one more
round, but only once.

Lingering records wait longer, to share a transaction with other lingering records. Each transaction with a lingering
record writes to one more topic and leaves an end marker there. Readers of that topic have to fetch each marker before
the records that they wait for.
"""

from __future__ import annotations

from workers.stage.runner import Handled

SHARE = 0.02
"""The wait, as a fraction of the handling time."""
MOST_SECONDS = 0.025
"""The longest wait that follows from handling times."""
_WEIGHT = 0.05
"""The weight of the newest record in the moving average."""
FEW_RECORDS = 8
"""If more new records than this number begin, the transaction does not wait for one more round. The more records begin,
the less time the wait would save for each record.
"""
LINGER_SECONDS = 0.5
LINGER_RECORDS = 100
LINGER_BYTES = 4 * 1024 * 1024
"""A quarter of the bytes of the smallest window. Lingering records must not fill the window, since a full window stops
fetching."""


class GroupCommit:
    """Computes a stage's wait from a moving average over its records. Only the Kafka thread calls the methods."""

    def __init__(self, least_seconds: float = 0.0) -> None:
        self._least_seconds = least_seconds
        self._average = 0.0
        self._since: float | None = None
        self.made_way = False
        """True if the pending records have already waited one round to let new records begin."""

    @property
    def seconds(self) -> float:
        """The longest time that a complete record waits for other records."""
        return max(self._least_seconds, self._average)

    def came(self, took_seconds: float, now: float) -> None:
        """Count a record that completed at `now` (monotonic seconds) after `took_seconds` of handling."""
        self._average += _WEIGHT * (min(MOST_SECONDS, SHARE * took_seconds) - self._average)
        if self._since is None:
            self._since = now

    def left(self) -> None:
        """Note that no complete record is waiting."""
        self._since, self.made_way = None, False

    def expects(self, now: float) -> bool:
        """Return whether the first complete record still waits for other records."""
        return self._since is not None and now - self._since < self.seconds

    def makes_way(self, handed_over: int) -> bool:
        """Return whether the complete records wait one more round. `handed_over`: records dispatched in this round."""
        if self._since is None or self.made_way or not 0 < handed_over <= FEW_RECORDS:
            return False
        self.made_way = True
        return True


class Lingering:
    """Completions that may be settled later, in order of arrival. Only the Kafka thread calls the methods."""

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
        """Remove and return all completions if they may wait no longer, else return an empty list.

        They may wait no longer if the first one has waited for LINGER_SECONDS, or if a bound is reached.
        """
        much = len(self.completions) >= LINGER_RECORDS or self._bytes >= LINGER_BYTES
        return self.end() if much or now >= self._since + LINGER_SECONDS else []

    def end(self) -> list[Handled]:
        """Remove and return all completions."""
        ended, self.completions = self.completions, []
        return ended
