"""A line of requests with little time before a server that may be slower than they come.

The newest is next: with the oldest first, a line that is too long would leave each just too little time (Maurer, "Fail
at Scale", 2015, "adaptive LIFO"). It is no longer than what is served within a request's time, so that who would wait
for nothing hears it at once.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

T = TypeVar("T")

_NEWEST_WEIGHT: Final = 0.25


class NewestFirst(Generic[T]):
    """Requests that wait. Falsy when there are none."""

    def __init__(self) -> None:
        self._waiting: list[T] = []
        self._one_seconds: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: T, seconds: float) -> list[T]:
        """Add a request that has so much time. Those who go away for it, the oldest, for whom there is none."""
        self._waiting.append(request)
        served = seconds / self._one_seconds if self._one_seconds else float(len(self._waiting))
        crowded = max(0, len(self._waiting) - max(1, int(served)))
        gone, self._waiting = self._waiting[:crowded], self._waiting[crowded:]
        return gone

    def next(self) -> T:
        """Take the newest. Raises IndexError where nobody waits."""
        return self._waiting.pop()

    def served(self, seconds: float) -> None:
        """One request took so long."""
        before = seconds if self._one_seconds is None else self._one_seconds
        self._one_seconds = before + _NEWEST_WEIGHT * (seconds - before)

    def leave(self, request: T) -> None:
        """It waits no more, if it did."""
        if request in self._waiting:
            self._waiting.remove(request)

    def clear(self) -> list[T]:
        """All who waited; nobody does any more."""
        gone, self._waiting = self._waiting, []
        return gone
