"""Event loops with clocks for tests: a `VirtualLoop` skips all waits, and a `JumpingLoop` those that a test skips.

`LoopClock` gives the running loop's time to code that asks a `telemetry.clock.Clock`.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from telemetry.hand_clock import HandClock


@dataclass(frozen=True)
class LoopClock:
    """A `telemetry.clock.Clock` whose seconds are those of the running event loop; its wall time begins at `start`."""

    start: float = 0.0

    def time(self) -> float:
        return self.start + self.monotonic()

    def monotonic(self) -> float:
        try:
            return asyncio.get_running_loop().time()
        except RuntimeError:  # an object under test may be made before the loop runs
            return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError("the loop is never blocked")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop for code without I/O. Its clock begins at 0, and jumps to the next timer when no task can run."""

    def __init__(self) -> None:
        self._selector_of_ours = _Skipping()
        super().__init__(self._selector_of_ours)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._selector_of_ours.now


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop for code with I/O: its clock is the machine's, plus the jumps so far."""

    jumped = 0.0
    """Seconds that all jumps have skipped."""

    def time(self) -> float:
        """Seconds of the machine's clock, plus the jumps."""
        return super().time() + self.jumped


def jump(clock: HandClock, seconds: float) -> None:
    """Let a long wait end at once: move this clock, and the timers of the running `JumpingLoop`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingLoop)
    loop.jumped += seconds
    clock.sleep(seconds)


_Test = Callable[..., Coroutine[Any, Any, None]]


def in_virtual_time(test: _Test) -> Callable[..., None]:
    """Run an asynchronous test on a `VirtualLoop`, where a busy machine delays nothing."""
    return _on(VirtualLoop, test)


def in_jumping_time(test: _Test) -> Callable[..., None]:
    """Run an asynchronous test on a `JumpingLoop`: its time limits can be generous, since a `jump` ends them."""
    return _on(JumpingLoop, test)


def _on(loop_factory: Callable[[], asyncio.AbstractEventLoop], test: _Test) -> Callable[..., None]:
    @functools.wraps(test)
    def synchronous(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(test(*args, **kwargs))

    del synchronous.__wrapped__  # with this attribute, pytest would treat the test as asynchronous
    return synchronous


class _Skipping(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the events that are ready at once; instead of waiting, move the clock by the timeout."""
        self.now += timeout or 0.0
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        return ready
