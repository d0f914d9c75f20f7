"""The choice of topics for a sweep, and the division of a sweep into steps, without I/O. See `settler`.

A topic with only one copy of some partition may hold leftovers of any ended transaction. So the topic is swept before
the first write, and again after a failure. A partition with two copies that loses its leader gets another leader at
once. So a topic with two copies of each partition is swept only after a failed transaction that wrote to this topic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

SWEEP_PARTITIONS = 250
"""Cap on the number of partitions in one step.

Each partition costs a request and a marker, and Kafka ends a transaction after 5 s.
"""
AGAIN_SECONDS = 30.0
"""The time until a topic without a leader is checked again: leftovers may hold up the topic's readers."""

Place = tuple[str, int]
"""A topic and a partition's number."""


class Layout(NamedTuple):
    """The layout of a topic."""

    partitions: int
    """The number of partitions; 0 if the topic is gone."""
    copies: int = 1
    """The number of replicas of the partition with the fewest replicas."""
    is_led: bool = True
    """True if each partition has a leader."""


class LeaderMissing(Exception):  # noqa: N818 - it names what is missing
    """A topic must be swept now, but one of its partitions has no leader."""

    def __init__(self, topic: str) -> None:
        super().__init__(topic)
        self.topic = topic


class Sweeps:
    """Remembers which topics are clean, which need a sweep, and which partitions are left in the present sweep."""

    def __init__(self, topics: Iterable[str]) -> None:
        self._clean: set[str] = set()
        self._owed = set(topics)
        self._thin: set[str] = set()
        """Topics with a partition that has only one copy."""
        self._exposed: set[str] = set()
        """Topics that a failed transaction wrote to."""
        self._needed: set[str] = set()
        self._planned: set[str] = set()
        self._left: list[Place] | None = None
        self.postponed: frozenset[str] = frozenset()
        """Topics that need a sweep, but have a partition without a leader."""

    @property
    def owed(self) -> frozenset[str]:
        """Topics to examine: `plan` sweeps each topic, or finds that the topic needs no sweep."""
        return frozenset(self._owed)

    @property
    def is_planned(self) -> bool:
        """True if a sweep is under way."""
        return self._left is not None

    def need(self, topics: Iterable[str]) -> bool:
        """Note the topics of the next batch's outputs. Returns True if a topic has to be swept first."""
        self._needed = set(topics) - self._clean
        self._owed |= self._needed
        return bool(self._needed)

    def doubt(self, written: Iterable[str]) -> None:
        """Note that a transaction which wrote to `written` failed. A failed transaction may leave leftovers."""
        self._exposed |= set(written)
        doubtful = self._clean & (self._thin | self._exposed)
        self._clean -= doubtful
        self._owed |= doubtful
        self._left = None

    def plan(self, layouts: Mapping[str, Layout]) -> None:
        """Plan a sweep of the topics in `owed`.

        Raises LeaderMissing if the next batch needs a topic without a leader.
        """
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
        """Return the partitions to sweep in the next step.

        Each of the first three `failures` halves the number of partitions.
        """
        return (self._left or [])[: SWEEP_PARTITIONS >> min(failures, 3)]

    def is_last(self, places: Sequence[Place]) -> bool:
        """Return whether a step over `places` ends the sweep."""
        return len(places) == len(self._left or ())

    def done(self, places: Sequence[Place]) -> None:
        """Note that the step over `places` is made. After the last step all planned topics are clean."""
        self._left = (self._left or [])[len(places) :]
        if self._left:
            return
        self._clean |= self._planned
        self._owed -= self._planned
        self._exposed -= self._planned
        self._needed.clear()
        self._left = None
