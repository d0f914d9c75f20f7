"""Which topics a settler has to sweep, and in which steps. It does no I/O; `settle` says why there are sweeps.

A topic with one copy of a partition may hold a rest of any ended transaction: each is swept before it is written to,
and again after a failure. A partition with two copies has a leader, or gets one at once, when a transaction ends. So of
a topic with two copies of everything only what the failed transaction wrote is doubted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

SWEEP_PARTITIONS = 250
"""In one transaction, at most: each costs a request and a marker, and Kafka ends a transaction after 5 s."""
AGAIN_SECONDS = 30.0
"""After which a topic is looked at again that had no leader: its readers wait behind a rest, if there is one."""

Place = tuple[str, int]
"""A topic and a partition's number."""


class Layout(NamedTuple):
    """How a topic is laid out."""

    partitions: int
    """0 where the topic is gone."""
    copies: int = 1
    """Of that partition which has fewest."""
    is_led: bool = True
    """Whether each partition has a leader."""


class LeaderMissing(Exception):  # noqa: N818 - it names what is missing
    """A topic has to be swept now, and one of its partitions has no leader."""

    def __init__(self, topic: str) -> None:
        super().__init__(topic)
        self.topic = topic


class Sweeps:
    """Topics that are clean, those that are owed a sweep, and how far the sweep under way is."""

    def __init__(self, topics: Iterable[str]) -> None:
        self._clean: set[str] = set()
        self._owed = set(topics)
        self._thin: set[str] = set()
        """With a partition of which there is one copy."""
        self._exposed: set[str] = set()
        """Written to by a transaction that failed."""
        self._needed: set[str] = set()
        self._planned: set[str] = set()
        self._left: list[Place] | None = None
        self.postponed: frozenset[str] = frozenset()
        """Topics that are owed a sweep, and have no leader now."""

    @property
    def owed(self) -> frozenset[str]:
        """Topics to be swept, or to be found without need of it."""
        return frozenset(self._owed)

    @property
    def is_planned(self) -> bool:
        """Whether a sweep is under way."""
        return self._left is not None

    def need(self, topics: Iterable[str]) -> bool:
        """These are written to next. True if one has to be swept before."""
        self._needed = set(topics) - self._clean
        self._owed |= self._needed
        return bool(self._needed)

    def doubt(self, written: Iterable[str]) -> None:
        """A transaction that wrote to these topics failed: it, or one before it, may have left a rest."""
        self._exposed |= set(written)
        doubtful = self._clean & (self._thin | self._exposed)
        self._clean -= doubtful
        self._owed |= doubtful
        self._left = None

    def plan(self, layouts: Mapping[str, Layout]) -> None:
        """Begin a sweep of what is owed. Raises LeaderMissing for a topic that is written to next."""
        self._thin |= {topic for topic, layout in layouts.items() if layout.copies < 2}
        leaderless = {topic for topic, layout in layouts.items() if not layout.is_led}
        for topic in sorted(leaderless & self._needed):
            raise LeaderMissing(topic)
        self.postponed = frozenset(leaderless)
        self._planned = layouts.keys() - leaderless
        self._left = [
            (topic, number)
            for topic in sorted(self._planned)
            if topic in self._thin or topic in self._exposed
            for number in range(layouts[topic].partitions)
        ]

    def step(self, failures: int) -> list[Place]:
        """The partitions to sweep in the next transaction; fewer after failures, of which the first three count."""
        return (self._left or [])[: SWEEP_PARTITIONS >> min(failures, 3)]

    def is_last(self, places: Sequence[Place]) -> bool:
        """Whether the sweep is over with this step."""
        return len(places) == len(self._left or ())

    def done(self, places: Sequence[Place]) -> None:
        """The step is made. With the last one all that was planned is clean."""
        self._left = (self._left or [])[len(places) :]
        if self._left:
            return
        self._clean |= self._planned
        self._owed -= self._planned
        self._exposed -= self._planned
        self._needed.clear()
        self._left = None
