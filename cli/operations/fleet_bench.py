"""Measures a fleet by sending jobs to it: jobs a second, and the time from a job's submission to its callback.

One machine sends the jobs and receives the callbacks, so that both times are from one clock.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any

from schemas.job import Job
from schemas.outcome import Outcome
from telemetry.clock import Clock

_KIND = "inference."


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """The jobs to send."""

    model: str
    jobs: int
    callback_url: str
    ttl_seconds: float
    """An unanswered job expires after this many seconds, so that a bench leaves no work behind."""
    rate: float | None = None
    """Jobs a second; if None, jobs are sent as fast as Kafka accepts them."""


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The figures of a bench. Times are in milliseconds from a job's submission to its first verified callback."""

    model: str
    jobs: int
    accepted: int
    outcomes: dict[str, int]
    """For each outcome, the number of jobs that were called back."""
    seconds: float
    """The time from the first submission to the last callback."""
    times_ms: tuple[float, ...]
    """The time of each job that was called back; the shortest time comes first."""

    @property
    def called_back(self) -> int:
        """The number of jobs that were called back."""
        return len(self.times_ms)

    @property
    def succeeded(self) -> int:
        """The number of jobs whose callback contains an answer."""
        return self.outcomes.get(Outcome.SUCCEEDED, 0)

    @property
    def jobs_per_second(self) -> float:
        """The number of callbacks per second."""
        return self.called_back / self.seconds if self.seconds > 0 else 0.0

    def percentile(self, percent: float) -> float | None:
        """Return a percentile of the times, by the nearest rank; None if there was no callback."""
        if not self.times_ms:
            return None
        return self.times_ms[max(0, math.ceil(percent / 100 * self.called_back) - 1)]

    def document(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "model": self.model,
            "jobs": self.jobs,
            "accepted": self.accepted,
            "called_back": self.called_back,
            "outcomes": self.outcomes,
            "seconds": round(self.seconds, 3),
            "jobs_per_second": round(self.jobs_per_second, 1),
            "submit_to_callback_ms": {
                name: round(value, 1) if (value := self.percentile(percent)) is not None else None
                for name, percent in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
            },
        }


class FleetBench:
    """One run of a bench. One thread iterates over `work`, and another thread may call `arrived`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._run = secrets.token_hex(6)
        self._lock = Lock()
        self._sent: dict[str, float] = {}
        self._came: dict[str, tuple[float, str]] = {}

    def work(self, plan: BenchPlan) -> Iterator[Job]:
        """Yield the jobs, each when it is due. A job's time begins when the job is yielded."""
        began = self._clock.monotonic()
        for number in range(plan.jobs):
            if plan.rate is not None:
                self._clock.sleep(max(0.0, began + number / plan.rate - self._clock.monotonic()))
            job = Job(
                job_id=f"bench_{self._run}_{number}",
                model_id=plan.model,
                prompt=f"Answer with the number {number}.",
                max_tokens=16,
                ttl_seconds=plan.ttl_seconds,
                callback_url=plan.callback_url,
            )
            with self._lock:
                self._sent[str(job.job_id)] = self._clock.monotonic()
            yield job

    def arrived(self, event: Any) -> None:
        """Record a verified event. Events of other jobs, and repeats, are ignored."""
        now = self._clock.monotonic()
        data = event.get("data") if isinstance(event, dict) else None
        job_id, kind = data.get("id") if isinstance(data, dict) else None, event.get("type") if data else None
        if not isinstance(job_id, str) or not isinstance(kind, str) or not kind.startswith(_KIND):
            return
        with self._lock:
            if job_id in self._sent:
                self._came.setdefault(job_id, (now, kind.removeprefix(_KIND)))

    @property
    def called_back(self) -> int:
        """The number of jobs that were called back so far."""
        with self._lock:
            return len(self._came)

    def report(self, plan: BenchPlan, accepted: int) -> BenchReport:
        """Return the figures. `accepted` is the number of jobs that Kafka has."""
        with self._lock:
            came = dict(self._came)
            times = sorted(1000 * (at - self._sent[job_id]) for job_id, (at, _) in came.items())
            began = min(self._sent.values(), default=0.0)
        outcomes = Counter(outcome for _, outcome in came.values())
        seconds = max((at for at, _ in came.values()), default=began) - began
        return BenchReport(plan.model, plan.jobs, accepted, dict(outcomes.most_common()), seconds, tuple(times))
