"""Which jobs nobody wants any more: fed from `job_control`, asked by the worker's handler. All on one event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from schemas.control import InvalidControl, JobKey, read_control, read_job_key
from schemas.topics import LANES_KEPT_MS
from telemetry.clock import Clock
from telemetry.logs import get_logger

_CLOCKS_MS = 24 * 3600 * 1000
KEPT_MS = LANES_KEPT_MS + _CLOCKS_MS
"""Longer than a job can live, by a day for clocks that differ. A dead letter lives longer: a redrive looks itself."""

log = get_logger()


class Cancellations:
    """The jobs that are cancelled, and those running now that want to be told."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: dict[JobKey, int] = {}
        """Unix milliseconds, in the order in which they came; none is of the future."""
        self._latest: int | None = None
        """The last of these times that a record said."""
        self._running: dict[JobKey, list[Callable[[], object]]] = {}

    def __len__(self) -> int:
        return len(self._since)

    def holds(self, job: JobKey) -> bool:
        """Whether this job is cancelled."""
        return job in self._since

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take in a record of `job_control`. Whoever runs the job is told at once."""
        try:
            job = read_job_key(key)
            said = read_control(value) if value is not None else None
        except InvalidControl as error:
            log.warning("A record of job_control cannot be read.", action="control-unreadable", problem=str(error))
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
        """Meanwhile `stop` is called when the job is cancelled; a job may run more than once at a time."""
        running = self._running.setdefault(job, [])
        running.append(stop)
        try:
            yield
        finally:
            running.remove(stop)
            if not running:
                self._running.pop(job, None)

    def _dated(self, at: int) -> int:
        """The time of a record that says `at`. One of the future is as old as the one before it.

        Else it would stand before all that come later, and none of them would be forgotten.
        """
        now = round(self._clock.time() * 1000)
        if at > now:
            return now if self._latest is None else self._latest
        self._latest = at
        return at

    def _forget(self) -> None:
        """Drop from the front what is too old to matter."""
        too_old = self._clock.time() * 1000 - KEPT_MS
        while self._since:
            oldest = next(iter(self._since))
            if self._since[oldest] >= too_old:
                return
            del self._since[oldest]
