"""Jobs for a model that no worker serves wait a little, since a new worker or alias may soon serve the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from schemas.codec import InvalidJob, ReceivedJob
from telemetry.clock import Clock
from workers.stage.record import Record

LOOK_SECONDS: Final = 0.5
MOST_WAITING: Final = 64
"""Cap on the jobs that wait at once.

Each waiting job has a place in the window, and unknown names must not take all places.
"""


class UnservedModel(Exception):  # noqa: N818 - named after the job's problem
    """No engine of this fleet has the job's model now. `invalid` is the job's rejection."""

    def __init__(self, received: ReceivedJob, invalid: InvalidJob) -> None:
        super().__init__(str(invalid))
        self.received = received
        self.invalid = invalid


class UnservedJobs:
    """Lets jobs wait until their record is `seconds` old."""

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock
        self._waiting = 0

    async def served_later(self, record: Record, is_served: Callable[[], bool], is_over: Callable[[], bool]) -> bool:
        """Wait until `is_served()` or `is_over()`.

        Return False if the time ends first, or if too many jobs wait already.
        """
        now = self._clock.time()
        until = min(record.timestamp_ms / 1000, now) + self._seconds
        if self._waiting >= MOST_WAITING or until <= now:
            return False
        self._waiting += 1
        try:
            while (remaining := until - self._clock.time()) > 0:
                await asyncio.sleep(min(LOOK_SECONDS, remaining))
                if is_served() or is_over():
                    return True
        finally:
            self._waiting -= 1
        return False
