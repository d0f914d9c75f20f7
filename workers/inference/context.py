"""A job on its way through a worker, and the way's end."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from schemas.codec import InvalidJob, ReceivedJob
from schemas.result import Result
from workers.stage.record import Failure, Output, Record

if TYPE_CHECKING:
    from workers.inference.ground import GroundedRequest
    from workers.inference.rollout.rollouts import CandidateAway


@dataclass(slots=True)
class JobContext:
    """One job. Each step of the way changes it, or ends the way with a `Finish`."""

    record: Record
    received: ReceivedJob
    plain: ReceivedJob
    """The job as its producer and the input filter left it, without the defaults of a model."""
    queued_ms: float | None = None
    """Milliseconds in Kafka; None until the job's turn has been observed."""
    enrich_seconds: float | None = None
    """The time for payload, images and sources together; None for a job without these."""
    infer_seconds: float | None = None
    """The time for all answers of the engine together; None without an answer."""
    size: int = 0
    """Bytes of the record's value, or of the payload."""
    asked: GroundedRequest | None = None
    """The request to the engine, once the sources are read."""
    held: AsyncExitStack | None = None
    """The places in memory for payload and images, which are freed at the way's end."""
    away: CandidateAway | None = None
    """A rollout's candidate that did not answer the job."""
    reports: list[Output] = field(default_factory=list)
    """Records for a rollout, beside the job's own."""

    def holding(self) -> AsyncExitStack:
        """Return a new stack of places that are freed at the way's end."""
        if self.held is None:
            self.held = AsyncExitStack()
        return self.held

    def fetched(self, seconds: float) -> None:
        """Add the time of a fetch."""
        self.enrich_seconds = (self.enrich_seconds or 0.0) + seconds

    @property
    def enrich_ms(self) -> float:
        """The time for payload, images and sources in milliseconds."""
        return 1000 * (self.enrich_seconds or 0.0)


@dataclass(slots=True)
class Finish:
    """The end of a job's way through this worker."""

    result: Result | None = None
    """None for a rejected job, whose letter has the problems, and for a moved one."""
    letter: InvalidJob | Failure | None = None
    """The reason for a dead letter beside the result; None if the result needs none."""
    moved: Output | None = None
    """The job in the lane of another engine."""
    by_engine: bool = False
    """True if the engine rejected the job, perhaps in words that quote the prompt."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A part of the job that a server did not send in time."""

    code: str
    reason: str
