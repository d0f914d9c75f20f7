"""Time as a value that is passed in, so that a test can advance it."""

from __future__ import annotations

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


class MachineClock:
    """The machine's own clock."""

    def time(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never run backwards."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block the calling thread."""
        time.sleep(seconds)


class TimeLimit:
    """The end of a wait. Without seconds, the wait has no end."""

    def __init__(self, clock: ClientClock, seconds: float | None) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock.monotonic() + seconds

    @property
    def ends(self) -> bool:
        """True if the wait has an end."""
        return self._end is not None

    @property
    def passed(self) -> bool:
        """True once the time is up."""
        return self._end is not None and self._clock.monotonic() >= self._end

    def within(self, seconds: float) -> float:
        """Return these seconds, or the fewer that are left; never less than 0."""
        return seconds if self._end is None else max(0.0, min(seconds, self._end - self._clock.monotonic()))
