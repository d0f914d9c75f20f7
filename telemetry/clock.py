"""Time as a value that is passed in, so that tests advance it instead of waiting."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def time(self) -> float:
        """Seconds since the Unix epoch; may jump when the machine's clock is set."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards, from an arbitrary start, and go on while the machine is suspended.

        Neither the event loop's time nor `time.monotonic()`: what one of them shows says nothing about the others.
        """
        ...

    def sleep(self, seconds: float) -> None:
        """Block the calling thread for this many seconds."""
        ...


if sys.platform == "linux":
    # CLOCK_MONOTONIC stands still in a suspended machine: tiers would be let go as much later, and knowledge of a topic
    # that is older than its tombstones would pass for fresh.
    _steady = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:
    _steady = time.monotonic


class SystemClock:
    """The machine's own clock. The one place that may call the `time` module."""

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        time.sleep(seconds)  # noqa: TID251

    # The functions themselves, since each callback asks several times.
    monotonic = staticmethod(_steady)
    """Seconds that never run backwards; on Linux those since the machine was started."""
    time = staticmethod(time.time)  # noqa: TID251
    """Seconds since the Unix epoch."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """One budget, handed down a chain of steps, so that steps have no budgets that add up to more."""

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
        """Whether nothing is left."""
        return self.clock.monotonic() >= self.at
