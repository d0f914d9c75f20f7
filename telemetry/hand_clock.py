"""Clocks that a test or a bench moves by hand; each is a `telemetry.clock.Clock`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class HandClock:
    """A clock whose wall time and monotonic time are both `now`, in seconds. A sleep advances `now` without a wait."""

    now: float = 100.0

    def time(self) -> float:
        """Seconds since the Unix epoch."""
        return self.now

    def monotonic(self) -> float:
        """The same value as `time`."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds


class SetClock(HandClock):
    """A clock for code that must not wait: only an assignment to `now` moves it."""

    def sleep(self, seconds: float) -> None:
        """Raise AssertionError."""
        raise AssertionError(f"a sleep of {seconds} s where nothing may wait")
