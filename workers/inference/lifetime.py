"""The end of a job's life, by its deadline or by a cancellation, which is read from `job_control`.

All methods run on one event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from schemas.codec import ReceivedJob
from schemas.control import InvalidControl, JobKey, batch_of, read_control, read_job_key
from schemas.topics import LANES_KEPT_MS
from telemetry.clock import Clock
from telemetry.logs import get_logger

_CLOCKS_MS = 24 * 3600 * 1000
KEPT_MS = LANES_KEPT_MS + _CLOCKS_MS
"""Milliseconds for which a cancellation is kept: a job's longest life plus one day, since clocks differ.

A dead letter may live longer, so a redrive looks up cancellations in `job_control` itself.
"""

STOPPING_SECONDS = 0.005
"""The time for which runs are stopped one after the other before the loop serves its other tasks."""

log = get_logger()


class Cancellations:
    """The cancelled jobs and batches, and for each running job the functions that stop its runs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: dict[JobKey, int] = {}
        """The time of each cancellation in Unix milliseconds, in the order of arrival. No time is in the future."""
        self._latest: int | None = None
        """The time of the last record, not counting records with a time in the future."""
        self._running: dict[JobKey, dict[int, Callable[[], object]]] = {}
        """For each job that runs, and for each batch with such jobs, the functions that stop the runs, by number."""
        self._numbers = itertools.count()
        self._stopping: deque[tuple[JobKey, int]] = deque()
        """The keys of cancelled jobs and batches, each with the number of a run to stop."""

    def __len__(self) -> int:
        return len(self._since)

    def holds(self, job: JobKey) -> bool:
        """True if this job is cancelled, or the batch that the job belongs to."""
        if not self._since:
            return False
        return any(key in self._since for key in _keys(job))

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Apply a record of `job_control`: store or drop a cancellation, and stop the runs of a cancelled job."""
        try:
            job = read_job_key(key)
            said = read_control(value) if value is not None else None
        except InvalidControl as error:
            log.warning(
                "Skipping an unreadable record of job_control.", action="control-unreadable", problem=str(error)
            )
            return
        self._since.pop(job, None)
        if said is None:
            return
        self._since[job] = self._dated(said.at)
        self._forget()
        self._stopping.extend((job, number) for number in self._running.get(job, ()))
        self._stop_some()

    def _stop_some(self) -> None:
        """Stop cancelled runs for a short time; the rest follows when the event loop has run its other tasks.

        A batch may have thousands of running jobs.
        """
        began = time.perf_counter()
        while self._stopping:
            key, number = self._stopping.popleft()
            if (stop := self._running.get(key, {}).get(number)) is not None:
                stop()
            if self._stopping and time.perf_counter() - began > STOPPING_SECONDS:
                asyncio.get_running_loop().call_soon(self._stop_some)
                return

    def told(self, job: JobKey, stop: Callable[[], object]) -> AbstractContextManager[None]:
        """Call `stop` if the job is cancelled during the block. A job may have several runs at a time."""
        return _Run(self._running, _keys(job), next(self._numbers), stop)

    def _dated(self, at: int) -> int:
        """Return `at`, the record's time in Unix ms, if it is not in the future.

        Otherwise return the previous record's time, or now if there is no previous record. A cancellation dated in the
        future would stay at the front of `_since`, and `_forget` would drop no cancellation behind it.
        """
        now = round(self._clock.time() * 1000)
        if at > now:
            return now if self._latest is None else self._latest
        self._latest = at
        return at

    def _forget(self) -> None:
        """Drop the cancellations at the front of `_since` that are older than `KEPT_MS`."""
        too_old = self._clock.time() * 1000 - KEPT_MS
        while self._since:
            oldest = next(iter(self._since))
            if self._since[oldest] >= too_old:
                return
            del self._since[oldest]


class _Run:
    """A run of a job, listed among the running ones during the block."""

    __slots__ = ("_keys", "_number", "_running", "_stop")

    def __init__(
        self,
        running: dict[JobKey, dict[int, Callable[[], object]]],
        keys: tuple[JobKey, ...],
        number: int,
        stop: Callable[[], object],
    ) -> None:
        self._running, self._keys, self._number, self._stop = running, keys, number, stop

    def __enter__(self) -> None:
        for key in self._keys:
            self._running.setdefault(key, {})[self._number] = self._stop

    def __exit__(self, *_: object) -> None:
        for key in self._keys:
            running = self._running[key]
            del running[self._number]
            if not running:
                del self._running[key]


def _keys(job: JobKey) -> tuple[JobKey, ...]:
    """Return the keys by which a record may cancel this job: the job's own, and that of its batch."""
    batch = batch_of(job[1])
    return (job,) if batch is None else (job, (job[0], batch))


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
        `begin`, a CancelledError of its own included.
        """
        while True:
            work, is_stopped = asyncio.ensure_future(begin()), asyncio.Event()

            def stop(work: asyncio.Future[T] = work, is_stopped: asyncio.Event = is_stopped) -> None:
                is_stopped.set()
                work.cancel()

            with self.at_cancellation(received, stop):
                try:
                    return await work
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise  # this task is cancelled, not the job: the worker ends, or the caller's time is up
                    if self.is_over(received):
                        raise JobIsOver from None
                    if not is_stopped.is_set():
                        raise  # `begin` ends itself: it would do so again, for ever


def _key(received: ReceivedJob) -> JobKey:
    return received.tenant, received.job_id
