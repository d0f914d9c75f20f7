"""Time as a value that is passed in: a test advances its clock instead of waiting."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """A source of time."""

    def time(self) -> float:
        """Seconds since the Unix epoch; may jump when the machine's clock is set."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards, from an arbitrary start, and go on while the machine is suspended.

        The event loop's time and `time.monotonic()` have other starts: never compare them with this one.
        """
        ...

    def sleep(self, seconds: float) -> None:
        """Block the calling thread for this many seconds."""
        ...


if sys.platform == "linux":
    # CLOCK_MONOTONIC stops in a suspended machine: tiers would be emptied as much later, and knowledge of a topic older
    # than its tombstones would count as fresh.
    _steady = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:
    _steady = time.monotonic


class SystemClock:
    """The machine's own clock. No other code may call the `time` module."""

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        time.sleep(seconds)  # noqa: TID251

    # The functions themselves, without a call in between: each callback asks several times.
    monotonic = staticmethod(_steady)
    """Seconds that never run backwards; on Linux, those since the machine's start."""
    time = staticmethod(time.time)  # noqa: TID251
    """Seconds since the Unix epoch."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """One budget for a chain of steps: separate budgets would add up to more."""

    clock: Clock
    at: float = field()

    @classmethod
    def after(cls, clock: Clock, seconds: float) -> Deadline:
        """A deadline this many seconds from now."""
        return cls(clock, clock.monotonic() + seconds)

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.at - self.clock.monotonic())

    @property
    def passed(self) -> bool:
        """True if no time is left."""
        return self.clock.monotonic() >= self.at
