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
        """Seconds that never run backwards, from an arbitrary start, and that include time in suspension.

        The event loop's time and `time.monotonic()` may start elsewhere: never compare those times with this one.
        """
        ...

    def sleep(self, seconds: float) -> None:
        """Block the calling thread for `seconds`."""
        ...


if sys.platform == "linux":
    # CLOCK_MONOTONIC stops while the machine is suspended. With that clock, callbacks would leave their tiers too late,
    # and a topic's state that is older than the topic's tombstones would count as fresh.
    _steady = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:
    _steady = time.monotonic


class SystemClock:
    """The machine's own clock. No other code may call the `time` module."""

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        time.sleep(seconds)  # noqa: TID251

    # These attributes are the functions themselves, because a method would add a call, and each callback asks for the
    # time several times.
    monotonic = staticmethod(_steady)
    """Seconds that never run backwards; on Linux, seconds since the machine's start."""
    time = staticmethod(time.time)  # noqa: TID251
    """Seconds since the Unix epoch."""


def unix_ms(clock: Clock) -> int:
    """Return the time in whole Unix milliseconds."""
    return int(clock.time() * 1000)


@dataclass(frozen=True, slots=True)
class Deadline:
    """One time budget for a chain of steps; separate budgets would add up to more."""

    clock: Clock
    at: float = field()

    @classmethod
    def after(cls, clock: Clock, seconds: float) -> Deadline:
        """A deadline `seconds` from now."""
        return cls(clock, clock.monotonic() + seconds)

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.at - self.clock.monotonic())

    @property
    def passed(self) -> bool:
        """True if no time is left."""
        return self.clock.monotonic() >= self.at
