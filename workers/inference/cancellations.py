"""The cancelled jobs: fed from `job_control`, asked by the worker's handler, all on one event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from schemas.control import InvalidControl, JobKey, read_control, read_job_key
from schemas.topics import LANES_KEPT_MS
from telemetry.clock import Clock
from telemetry.logs import get_logger

_CLOCKS_MS = 24 * 3600 * 1000
KEPT_MS = LANES_KEPT_MS + _CLOCKS_MS
"""A job's longest life, and a day for clocks that differ. A dead letter may live longer: a redrive reads the topic."""

log = get_logger()


class Cancellations:
    """The cancelled jobs, and the running jobs with a function that stops them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: dict[JobKey, int] = {}
        """Cancelled jobs and the time in Unix milliseconds, in the order of arrival; no time is in the future."""
        self._latest: int | None = None
        """The newest time that a record named itself."""
        self._running: dict[JobKey, list[Callable[[], object]]] = {}

    def __len__(self) -> int:
        return len(self._since)

    def holds(self, job: JobKey) -> bool:
        """Whether this job is cancelled."""
        return job in self._since

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take in a record of `job_control`, and stop the runs of a job that it cancels."""
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
        for stop in self._running.get(job, ()):
            stop()

    @contextmanager
    def told(self, job: JobKey, stop: Callable[[], object]) -> Iterator[None]:
        """A block during which a cancellation of the job calls `stop`. A job may run more than once at a time."""
        running = self._running.setdefault(job, [])
        running.append(stop)
        try:
            yield
        finally:
            running.remove(stop)
            if not running:
                self._running.pop(job, None)

    def _dated(self, at: int) -> int:
        """The time that counts for a record that says `at`: for a time in the future, that of the record before it.

        A time in the future would stay at the front of the queue, and keep all later records from being dropped.
        """
        now = round(self._clock.time() * 1000)
        if at > now:
            return now if self._latest is None else self._latest
        self._latest = at
        return at

    def _forget(self) -> None:
        """Drop the jobs at the front that are older than `KEPT_MS`."""
        too_old = self._clock.time() * 1000 - KEPT_MS
        while self._since:
            oldest = next(iter(self._since))
            if self._since[oldest] >= too_old:
                return
            del self._since[oldest]
