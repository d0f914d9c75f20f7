"""Blocking calls to a dependency, on threads of its own: a dependency that hangs stops no other part of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from threading import Lock
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class DependencyBusy(Exception):  # noqa: N818 - it names what happened
    """All places of a dependency are taken, as when it hangs; the request may be repeated."""


class Dependency:
    """Runs calls on at most `threads` threads, and lets `waiting` more calls wait."""

    def __init__(self, name: str, threads: int, waiting: int) -> None:
        """`name` is a phrase for people, such as `the storage of files`."""
        self._name = name
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name.replace(" ", "-"))
        self._free = threads + waiting
        self._lock = Lock()

    async def run(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Return the result of a call. Raises its errors, and DependencyBusy if too many calls wait."""
        with self._lock:
            if self._free <= 0:
                raise DependencyBusy(f"{self._name} does not keep up")
        return await self.run_anyway(call, *arguments, **named)

    async def run_anyway(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Run a call that must not be refused, such as the removal of an unfinished file."""
        with self._lock:
            self._free -= 1
        context = copy_context()
        future = self._threads.submit(lambda: context.run(call, *arguments, **named))
        future.add_done_callback(self._done)
        return await asyncio.wrap_future(future)

    def submit(self, call: Callable[[], None]) -> None:
        """Run a call for whose end nothing waits."""
        self._threads.submit(call)

    def close(self, *, drop: bool = True) -> None:
        """End the threads, each after its present call; without `drop`, after all calls that wait."""
        self._threads.shutdown(wait=False, cancel_futures=drop)

    def _done(self, _: Future[T]) -> None:
        with self._lock:
            self._free += 1
