"""Which topics a settler has to sweep, and in which steps. It does no I/O; `settler_state` says why there are sweeps.

A topic with one copy of a partition may hold a rest of any ended transaction: it is swept before it is written to, and
again after a failure. A partition with two copies has a leader, or gets one at once, when a transaction ends. So a
topic with two copies of each partition is doubted only where the failed transaction wrote to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

SWEEP_PARTITIONS = 250
"""The most partitions in one sweep: each costs a request and a marker, and Kafka ends a transaction after 5 s."""
AGAIN_SECONDS = 30.0
"""How long until a topic without a leader is looked at again: its readers may wait behind a rest."""

Place = tuple[str, int]
"""A topic and a partition's number."""


class Layout(NamedTuple):
    """How a topic is laid out."""

    partitions: int
    """0 where the topic is gone."""
    copies: int = 1
    """Replicas of the partition with the fewest."""
    is_led: bool = True
    """Whether each partition has a leader."""


class LeaderMissing(Exception):  # noqa: N818 - it names what is missing
    """A topic has to be swept now, and one of its partitions has no leader."""

    def __init__(self, topic: str) -> None:
        super().__init__(topic)
        self.topic = topic


class Sweeps:
    """Topics that are clean, topics that are owed a sweep, and the partitions left in the present sweep."""

    def __init__(self, topics: Iterable[str]) -> None:
        self._clean: set[str] = set()
        self._owed = set(topics)
        self._thin: set[str] = set()
        """Topics with a partition of one copy."""
        self._exposed: set[str] = set()
        """Topics that a failed transaction wrote to."""
        self._needed: set[str] = set()
        self._planned: set[str] = set()
        self._left: list[Place] | None = None
        self.postponed: frozenset[str] = frozenset()
        """Topics that are owed a sweep, and have a partition without a leader now."""

    @property
    def owed(self) -> frozenset[str]:
        """Topics to look at: each is swept, or found to need no sweep."""
        return frozenset(self._owed)

    @property
    def is_planned(self) -> bool:
        """Whether a sweep is under way."""
        return self._left is not None

    def need(self, topics: Iterable[str]) -> bool:
        """Note the topics that are written to next. Returns True if one has to be swept before."""
        self._needed = set(topics) - self._clean
        self._owed |= self._needed
        return bool(self._needed)

    def doubt(self, written: Iterable[str]) -> None:
        """Note that a transaction that wrote to these topics failed: it, or one before it, may have left a rest."""
        self._exposed |= set(written)
        doubtful = self._clean & (self._thin | self._exposed)
        self._clean -= doubtful
        self._owed |= doubtful
        self._left = None

    def plan(self, layouts: Mapping[str, Layout]) -> None:
        """Begin a sweep of the owed topics. Raises LeaderMissing for a topic that is written to next."""
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
        """Return the partitions to sweep in the next transaction; fewer after up to three failures."""
        return (self._left or [])[: SWEEP_PARTITIONS >> min(failures, 3)]

    def is_last(self, places: Sequence[Place]) -> bool:
        """Return whether the sweep ends with this step."""
        return len(places) == len(self._left or ())

    def done(self, places: Sequence[Place]) -> None:
        """Note that the step is made. After the last one all planned topics are clean."""
        self._left = (self._left or [])[len(places) :]
        if self._left:
            return
        self._clean |= self._planned
        self._owed -= self._planned
        self._exposed -= self._planned
        self._needed.clear()
        self._left = None
