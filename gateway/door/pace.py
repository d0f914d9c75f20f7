"""A minimum speed for transfers: a client that moves one byte now and then cannot hold a connection for ever."""

from __future__ import annotations


class Pace:
    """Watches one transfer: each window of `seconds` has to carry `seconds * bytes_per_second` bytes.

    Times are in seconds, from any clock that does not run backwards; `moved` counts the transfer's bytes so far.
    """

    def __init__(self, seconds: float, bytes_per_second: float, now: float, moved: int = 0) -> None:
        self._seconds = seconds
        self._least = max(1.0, seconds * bytes_per_second)
        self._since = now
        self._moved = moved

    def slow(self, now: float, moved: int) -> bool:
        """Return whether the transfer is too slow. A window that carried enough bytes starts over."""
        if moved - self._moved >= self._least:
            self.restart(now, moved)
        return now - self._since > self._seconds

    def restart(self, now: float, moved: int) -> None:
        """Begin a new window. Callers do so while the peer cannot move bytes, so that this time is not counted."""
        self._since, self._moved = now, moved
