"""The end of a job's life, by its deadline or by a cancellation, which is read from `job_control`.

All methods run on one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from heapq import heapify, heappop, heappush
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

MOST_ENDED = 1_024
"""Runs that have ended, and may stay in the heap of deadlines besides as many as run."""
LEAST_SECONDS = 0.001
"""The shortest pause between two looks at the deadlines: the clock of deadlines may differ from the event loop's."""
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
        self._running: dict[JobKey, dict[Run, None]] = {}
        """The runs of each job that runs, and of each batch with such jobs: thousands for a batch, so a dictionary."""
        self._stopping: deque[Run] = deque()
        """Runs of cancelled jobs and batches."""

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
        self._stopping.extend(self._running.get(job, ()))
        self._stop_some()

    def _stop_some(self) -> None:
        """Stop cancelled runs for a short time; the rest follows when the event loop has run its other tasks.

        A batch may have thousands of running jobs.
        """
        began = time.perf_counter()
        while self._stopping:
            run = self._stopping.popleft()
            if run.stop is not None:
                run.stop()
            if self._stopping and time.perf_counter() - began > STOPPING_SECONDS:
                asyncio.get_running_loop().call_soon(self._stop_some)
                return

    def begin(self, run: Run) -> None:
        """Call `run.stop` if the job is cancelled before `end`. A job may have several runs at a time."""
        for key in run.keys:
            self._running.setdefault(key, {})[run] = None

    def end(self, run: Run) -> None:
        """Note that the run has ended."""
        run.stop = None
        for key in run.keys:
            if len(runs := self._running[key]) > 1:
                del runs[run]
            else:
                del self._running[key]

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


class Run:
    """One run of a job, which ends early when the job is cancelled or expires."""

    __slots__ = ("keys", "stop")

    def __init__(self, job: JobKey, stop: Callable[[], object]) -> None:
        self.keys = _keys(job)
        self.stop: Callable[[], object] | None = stop
        """Ends the run; None once it has ended, since it may hold the whole request."""


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
        self._deadlines = _Deadlines(clock)

    def remaining(self, received: ReceivedJob) -> float:
        """Seconds until the job's deadline; 0 or less as soon as `_Deadlines` stops the job's runs."""
        return received.deadline_ms / 1000 - self._clock.time()

    def is_cancelled(self, received: ReceivedJob) -> bool:
        """True if a record of `job_control` has cancelled the job."""
        return self._cancellations.holds(_key(received))

    def is_over(self, received: ReceivedJob) -> bool:
        """True if the job is cancelled or its deadline has passed."""
        return self.is_cancelled(received) or self.remaining(received) <= 0

    def begin(self, received: ReceivedJob, stop: Callable[[], object]) -> Run:
        """Call `stop` when the job is cancelled or its deadline passes, until the returned run is given to `end`."""
        run = Run((received.tenant, received.job_id), stop)
        self._cancellations.begin(run)
        self._deadlines.begin(run, received.deadline_ms)
        return run

    def end(self, run: Run) -> None:
        """Note that a run has ended."""
        self._cancellations.end(run)
        self._deadlines.end()

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

            run = Run(_key(received), stop)
            self._cancellations.begin(run)
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
            finally:
                self._cancellations.end(run)


class _Deadlines:
    """The deadlines of all runs of a worker, under one timer of the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._runs: list[tuple[int, int, Run]] = []
        """A heap of the runs, each with its deadline in Unix milliseconds and a number that no other run has.

        A run that has ended stays until its deadline, or until most of the heap has ended."""
        self._begun = self._ended = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, run: Run, deadline_ms: int) -> None:
        """Call `run.stop` at the deadline."""
        self._begun += 1
        heappush(self._runs, (deadline_ms, self._begun, run))
        if self._runs[0][2] is run:
            self._wait()

    def end(self) -> None:
        """Note that a run has ended."""
        self._ended += 1
        if len(self._runs) > MOST_ENDED + 2 * (self._begun - self._ended):
            self._runs = [entry for entry in self._runs if entry[2].stop is not None]
            heapify(self._runs)

    def _wait(self) -> None:
        """Set the timer to the first deadline."""
        if self._timer is not None:
            self._timer.cancel()
        seconds = self._runs[0][0] / 1000 - self._clock.time()
        self._timer = asyncio.get_running_loop().call_later(max(LEAST_SECONDS, seconds), self._stop_late)

    def _stop_late(self) -> None:
        self._timer, now = None, self._clock.time()
        while self._runs and (self._runs[0][2].stop is None or self._runs[0][0] / 1000 <= now):
            _, _, run = heappop(self._runs)
            if run.stop is not None:
                run.stop()
        if self._runs:
            self._wait()


def _key(received: ReceivedJob) -> JobKey:
    return received.tenant, received.job_id
