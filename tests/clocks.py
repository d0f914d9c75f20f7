"""Clocks that a test moves by hand: time passes where the test says so, and for nobody else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class HandClock:
    """Shows `now`, in seconds, on the wall and as the steady clock alike. A sleep moves it."""

    now: float = 100.0

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SetClock(HandClock):
    """For what must not wait: a sleep fails the test."""

    def sleep(self, seconds: float) -> None:
        raise AssertionError(f"a sleep of {seconds} s where nothing may wait")
