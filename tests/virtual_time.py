"""An event loop in which waiting takes no time: when no task can run, its clock jumps to the next timer."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a virtual clock that begins at 0, for code without I/O."""

    def __init__(self) -> None:
        self._selector_of_ours = _Skipping()
        super().__init__(self._selector_of_ours)

    def time(self) -> float:
        """Virtual seconds."""
        return self._selector_of_ours.now


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test on a `VirtualLoop`, where a busy machine delays nothing."""

    @functools.wraps(test)
    def synchronous(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    del synchronous.__wrapped__  # or pytest takes the test for asynchronous
    return synchronous


class _Skipping(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the events that are ready at once; instead of waiting, move the clock by the timeout."""
        self.now += timeout or 0.0
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        return ready
