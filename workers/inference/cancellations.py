"""The cancelled jobs, read from `job_control` for the worker's handler. All methods run on one event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from schemas.control import InvalidControl, JobKey, batch_of, read_control, read_job_key
from schemas.topics import LANES_KEPT_MS
from telemetry.clock import Clock
from telemetry.logs import get_logger

_CLOCKS_MS = 24 * 3600 * 1000
KEPT_MS = LANES_KEPT_MS + _CLOCKS_MS
"""Milliseconds for which a cancellation is kept: a job's longest life plus one day, since clocks differ.

A dead letter may live longer, so a redrive looks up cancellations in `job_control` itself.
"""

log = get_logger()


class Cancellations:
    """The cancelled jobs and batches, and for each running job the functions that stop its runs."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: dict[JobKey, int] = {}
        """The time of each cancellation in Unix milliseconds, in the order of arrival. No time is in the future."""
        self._latest: int | None = None
        """The time of the last record, not counting records with a time in the future."""
        self._running: dict[JobKey, list[Callable[[], object]]] = {}

    def __len__(self) -> int:
        return len(self._since)

    def holds(self, job: JobKey) -> bool:
        """True if this job is cancelled, or the batch that the job belongs to."""
        return job in self._since or ((batch := batch_of(job[1])) is not None and (job[0], batch) in self._since)

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
        for stop in [stop for stops in self._concerned(job) for stop in stops]:
            stop()

    @contextmanager
    def told(self, job: JobKey, stop: Callable[[], object]) -> Iterator[None]:
        """Call `stop` if the job is cancelled during the block. A job may have several runs at a time."""
        running = self._running.setdefault(job, [])
        running.append(stop)
        try:
            yield
        finally:
            running.remove(stop)
            if not running:
                self._running.pop(job, None)

    def _concerned(self, job: JobKey) -> list[list[Callable[[], object]]]:
        """Return the functions that stop the runs of this job, or of all jobs of this batch."""
        tenant, identifier = job
        lines = [stops for key, stops in self._running.items() if key[0] == tenant and batch_of(key[1]) == identifier]
        return [self._running.get(job, []), *lines]

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
