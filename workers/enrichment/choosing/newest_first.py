"""A queue of requests with short deadlines, for a server that may be too slow for all requests.

The newest request is served next. If the oldest were served next, a long queue would make each request just too late
(Maurer, "Fail at Scale", 2015, "adaptive LIFO"). The queue holds only as many requests as the server can serve within a
request's time. Requests that cannot be served in time are thus evicted at once.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

T = TypeVar("T")

_NEWEST_WEIGHT: Final = 0.25


class NewestFirst(Generic[T]):
    """A queue of requests, the newest first. Falsy when empty."""

    def __init__(self) -> None:
        self._waiting: list[T] = []
        self._one_seconds: float | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, request: T, seconds: float) -> list[T]:
        """Add a request that must be served within `seconds`.

        Return the oldest requests, which are evicted because they would be late.
        """
        self._waiting.append(request)
        served = seconds / self._one_seconds if self._one_seconds else float(len(self._waiting))
        crowded = max(0, len(self._waiting) - max(1, int(served)))
        gone, self._waiting = self._waiting[:crowded], self._waiting[crowded:]
        return gone

    def next(self) -> T:
        """Remove and return the newest request. Raises IndexError if none waits."""
        return self._waiting.pop()

    def served(self, seconds: float) -> None:
        """Record the service time of one request."""
        before = seconds if self._one_seconds is None else self._one_seconds
        self._one_seconds = before + _NEWEST_WEIGHT * (seconds - before)

    def leave(self, request: T) -> None:
        """Remove the request if it is still in the queue."""
        if request in self._waiting:
            self._waiting.remove(request)

    def clear(self) -> list[T]:
        """Remove and return all waiting requests."""
        gone, self._waiting = self._waiting, []
        return gone
