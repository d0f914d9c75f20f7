"""The end of a job's life, by its deadline or by a cancellation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from schemas.codec import ReceivedJob
from schemas.control import JobKey
from telemetry.clock import Clock
from workers.inference.cancellations import Cancellations


class Lifetimes:
    """Tells whether jobs have expired or were cancelled. All methods run on the event loop."""

    def __init__(self, cancellations: Cancellations, clock: Clock) -> None:
        self._cancellations = cancellations
        self._clock = clock

    def remaining(self, received: ReceivedJob) -> float:
        """Seconds until the job's deadline; negative once it has passed."""
        return received.deadline_ms / 1000 - self._clock.time()

    def is_cancelled(self, received: ReceivedJob) -> bool:
        """True if a record of `job_control` has cancelled the job."""
        return self._cancellations.holds(_key(received))

    def is_over(self, received: ReceivedJob) -> bool:
        """True if the job is cancelled or its deadline has passed."""
        return self.is_cancelled(received) or self.remaining(received) <= 0

    def at_cancellation(self, received: ReceivedJob, stop: Callable[[], object]) -> AbstractContextManager[None]:
        """Call `stop` if the job is cancelled during the block. The job's deadline does not call `stop`."""
        return self._cancellations.told(_key(received), stop)


def _key(received: ReceivedJob) -> JobKey:
    return received.tenant, received.job_id
