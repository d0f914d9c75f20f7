"""The running event loop's time as a clock, for tests in virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


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
