"""Judges one cell of the ledger from its samples: jobs lost and doubled, and the seconds until all was as before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

LATE_SECONDS = 5.0
"""A job is late if its first callback comes later than this after the job was due; without a fault, it takes 0.5 s."""


@dataclass(slots=True)
class Job:
    """One job of the load. All times are Unix seconds."""

    due: float
    accepted: float | None = None
    """Time of the gateway's 202; None if no gateway accepted the job, which the client then gave up."""
    outcomes: list[str] = field(default_factory=list)
    """The outcome of each result that a read_committed reader finds."""
    callbacks: list[tuple[float, str]] = field(default_factory=list)
    """Time and `webhook-id` of each verified callback that the receiver answered with 200."""

    @property
    def called(self) -> float | None:
        """Time of the first callback."""
        return min((at for at, _ in self.callbacks), default=None)


@dataclass(frozen=True, slots=True)
class Judged:
    """The verdict on one cell."""

    accepted: int
    refused: int
    """Jobs that no gateway accepted within the client's tries."""
    failed: int
    """Accepted jobs with a result that is no success."""
    lost: int
    """Accepted jobs without a result or without a callback."""
    doubled: int
    """Jobs with two results, or with callbacks of two events."""
    repeated: int
    """Callbacks that came again with the same `webhook-id`, as at-least-once delivery may."""
    longest_seconds: float
    """The longest time from a job's due time to its callback."""
    recovery_seconds: float | None
    """From the fault's end to the last late callback or refusal; None if a job was lost."""


def judge(jobs: Sequence[Job], ended: float) -> Judged:
    """Return the verdict on a cell whose fault ended at this Unix time."""
    accepted = [job for job in jobs if job.accepted is not None]
    lost = [job for job in accepted if not job.outcomes or not job.callbacks]
    troubled = [at for job in jobs if (at := _trouble(job)) is not None]
    return Judged(
        accepted=len(accepted),
        refused=len(jobs) - len(accepted),
        failed=sum(set(job.outcomes) not in (set(), {"succeeded"}) for job in accepted),
        lost=len(lost),
        doubled=sum(len(job.outcomes) > 1 or len(_events(job)) > 1 for job in jobs),
        repeated=sum(len(job.callbacks) - len(_events(job)) for job in jobs),
        longest_seconds=max((job.called - job.due for job in accepted if job.called is not None), default=0.0),
        recovery_seconds=None if lost else max([0.0, *(at - ended for at in troubled)]),
    )


def _events(job: Job) -> set[str]:
    return {webhook_id for _, webhook_id in job.callbacks}


def _trouble(job: Job) -> float | None:
    """Return the time up to which this job shows that the fleet is ill; None if the job went well."""
    if job.accepted is None:
        return job.due
    if job.called is not None and job.called - job.due > LATE_SECONDS:
        return job.called
    return None
