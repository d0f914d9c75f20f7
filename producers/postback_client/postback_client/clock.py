"""Clocks and time limits. A clock is passed as an argument, so that a test can pass one that it can advance."""

from __future__ import annotations

import math
import time
from typing import Protocol


class ClientClock(Protocol):
    """A source of time."""

    def time(self) -> float:
        """Seconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        ...

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        ...


MACHINE: ClientClock = time
"""The machine's own clock."""


class TimeLimit:
    """The end of a wait. If `seconds` is None, the wait has no end."""

    def __init__(self, clock: ClientClock, seconds: float | None) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock.monotonic() + seconds

    @property
    def ends(self) -> bool:
        """True if the wait has an end."""
        return self._end is not None

    @property
    def passed(self) -> bool:
        """True if the time is up."""
        return self._end is not None and self._clock.monotonic() >= self._end

    @property
    def left(self) -> float:
        """The seconds that are left; infinity if the wait has no end."""
        return self.within(math.inf)

    def before(self, other: TimeLimit) -> TimeLimit:
        """Return the one of the two that ends first."""
        return self if self.left < other.left else other

    def within(self, seconds: float) -> float:
        """Return `seconds`, or the time that is left if that is shorter; never less than 0."""
        return seconds if self._end is None else max(0.0, min(seconds, self._end - self._clock.monotonic()))
