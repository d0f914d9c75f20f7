"""How long what is complete waits for company in its transaction.

A transaction costs Kafka the same whether it carries one record or a thousand. Jobs that take seconds, as those of an
engine do, come back one by one; a small part of the time that they took is nothing to them, and saves most
transactions. Jobs that take no time wait for nobody, unless the stage says that nobody waits for what it settles.

To compose one keeps the interpreter for a millisecond or two, and the event loop begins a few records in less. So what
is complete makes way, once, where a few were handed over in the same round.

What may linger waits longer, for others of its kind. With each transaction that it is part of, Kafka writes to one
topic more and ends the transaction there too, and the next fetch brings that instead of what somebody waits for.
"""

from __future__ import annotations

from workers.stage.runner import Handled

SHARE = 0.02
"""Of the time that handling took."""
MOST_SECONDS = 0.025
_WEIGHT = 0.05
"""Of the newest record in the moving average."""
FEW_RECORDS = 8
"""For which a transaction makes way: of more of them each would win little."""
LINGER_SECONDS = 0.5
LINGER_RECORDS = 100
LINGER_BYTES = 4 * 1024 * 1024
"""A quarter of the smallest window: where that is full nothing is fetched."""


class GroupCommit:
    """A moving average over the records of one stage. The Kafka thread owns it."""

    def __init__(self, least_seconds: float = 0.0) -> None:
        self._least_seconds = least_seconds
        self._average = 0.0
        self._since: float | None = None
        self.made_way = False
        """Whether what is complete has waited for a round for others to begin."""

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
        self._since, self.made_way = None, False

    def expects(self, now: float) -> bool:
        """Whether the first of those that are complete still waits."""
        return self._since is not None and now - self._since < self.seconds

    def makes_way(self, handed_over: int) -> bool:
        """Whether what is complete waits for a round more, where so many records were handed over in this one."""
        if self._since is None or self.made_way or not 0 < handed_over <= FEW_RECORDS:
            return False
        self.made_way = True
        return True


class Lingering:
    """What is complete and may be settled later, in the order in which it came. The Kafka thread owns it."""

    def __init__(self) -> None:
        self.completions: list[Handled] = []
        self._since = 0.0
        self._bytes = 0

    def add(self, completion: Handled, now: float) -> None:
        """One more; `now` is monotonic seconds."""
        if not self.completions:
            self._since, self._bytes = now, 0
        self.completions.append(completion)
        self._bytes += len(completion.record.value)

    def over(self, now: float) -> list[Handled]:
        """Take all out, once the first has waited for LINGER_SECONDS or there is much of it; else nothing."""
        much = len(self.completions) >= LINGER_RECORDS or self._bytes >= LINGER_BYTES
        return self.end() if much or now >= self._since + LINGER_SECONDS else []

    def end(self) -> list[Handled]:
        """Take all out."""
        ended, self.completions = self.completions, []
        return ended
