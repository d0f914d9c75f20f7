"""Threads that a test steps: each is a greenlet, which runs from one pause to the next, so that a history repeats.

A pause is a place where a real thread may be preempted, stopped or killed.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

from gateway.store.store import Store
from gateway.store.writer import Writer
from telemetry.clock import Clock

T = TypeVar("T")


class Stepped(greenlet):  # type: ignore[misc]  # greenlet has no types
    """A thread of the simulation. Its uncaught errors reach the driver, who steps it."""

    name = ""
    ready: Callable[[], bool] = staticmethod(lambda: True)
    """The condition for which the thread waits."""

    @property
    def can_run(self) -> bool:
        """True if a step would make progress."""
        return not self.dead and self.ready()

    def kill(self) -> None:
        """End the thread where it is."""
        while not self.dead:
            self.throw()


def stepped(name: str, run: Callable[[], None]) -> Stepped:
    """Return a thread that begins with its first step."""
    made = Stepped(run)
    made.name = name
    return made


def pause(ready: Callable[[], bool] = lambda: True) -> None:
    """Let other threads run until the condition is true. The driver itself does not pause."""
    thread = getcurrent()
    if not isinstance(thread, Stepped):
        return
    while True:
        thread.ready = ready
        assert thread.parent is not None
        thread.parent.switch()
        if ready():
            return


class SteppedEvent:
    """A `threading.Event` by the simulation's clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def clear(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, seconds: float) -> bool:
        until = self._clock.monotonic() + seconds
        pause(lambda: self._is_set or self._clock.monotonic() >= until)
        return self._is_set


class SteppedFuture(Future[Any]):
    """A future whose waiter pauses."""

    def result(self, timeout: float | None = None) -> Any:
        pause(self.done)
        return super().result(0)


class _Changes:
    """The writer's queue."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)

    def get(self) -> Any:
        pause(lambda: bool(self._items))
        return self._items.popleft()

    def get_nowait(self) -> Any:
        if not self._items:
            raise queue.Empty
        return self._items.popleft()

    def qsize(self) -> int:
        return len(self._items)


class SteppedWriter(Writer):
    """A writer whose thread the driver steps."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._changes = _Changes()  # type: ignore[assignment]
        self.committed.append(lambda _rows: pause())
        self.thread = stepped("writer", self._work)

    def start(self) -> SteppedWriter:
        return self


class SteppedStore(Store):
    """A store whose readers pause before they read."""

    _writer: SteppedWriter

    def read_now(self, query: Callable[..., T]) -> T:
        pause()
        return super().read_now(query)
