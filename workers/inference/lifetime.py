"""The end of a job's life, by its deadline or by a cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from schemas.codec import ReceivedJob
from schemas.control import JobKey
from telemetry.clock import Clock
from workers.inference.cancellations import Cancellations

T = TypeVar("T")


class JobIsOver(Exception):  # noqa: N818 - named after the event
    """A job was cancelled, or has expired, before its work was done."""


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

    async def while_alive(self, received: ReceivedJob, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of `begin()` as `until_cancelled` does. Raises JobIsOver also at the job's deadline."""
        try:
            async with asyncio.timeout(max(0.0, self.remaining(received))):
                return await self.until_cancelled(received, begin)
        except TimeoutError:
            raise JobIsOver from None

    async def until_cancelled(self, received: ReceivedJob, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of `begin()`. If the job is cancelled, `begin()` is cancelled, too.

        If the job's cancellation is taken back at once, `begin` is called again. Raises JobIsOver, and the errors of
        `begin`.
        """
        while True:
            work = asyncio.ensure_future(begin())
            with self.at_cancellation(received, work.cancel):
                try:
                    return await work
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise  # this task is cancelled, not the job: the worker ends, or the caller's time is up
                    if self.is_over(received):
                        raise JobIsOver from None


def _key(received: ReceivedJob) -> JobKey:
    return received.tenant, received.job_id
