"""A rollout's candidate that is away during the canary: the primary answers its jobs, so that no job waits for it."""

from __future__ import annotations

import math
from dataclasses import replace

from schemas.codec import ReceivedJob
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.throttle import LogThrottle
from workers.inference.rollout.rollouts import Rollouts
from workers.stage.record import Output

PATIENCE_SECONDS = 10.0
"""Seconds without an answer from a candidate after which the primary answers the candidate's jobs."""
_SAID_SECONDS = 10.0

log = get_logger()


class CandidateAway(Exception):  # noqa: N818 - named after the event
    """The candidate has answered no request for a while, so the primary has to answer the job."""

    def __init__(self, primary: str | None) -> None:
        super().__init__("the rollout's candidate does not answer")
        self.primary = primary
        self.reports: list[Output] = []
        """The report of the candidate's failure, if the job is sampled."""

    def instead(self, received: ReceivedJob) -> ReceivedJob:
        """Return the job with the primary as its model."""
        return replace(received, job=received.job.model_copy(update={"model_id": self.primary}))


class Absences:
    """Tells for how long models have not answered. All methods run on the event loop."""

    def __init__(self, rollouts: Rollouts, clock: Clock) -> None:
        self._rollouts = rollouts
        self._clock = clock
        self._since: dict[str | None, float] = {}
        """For each model that is away, the time of its first failure after its last answer."""
        self._failed_at: dict[str | None, float] = {}
        self._throttle = LogThrottle(_SAID_SECONDS)

    @property
    def now(self) -> float:
        """The time in monotonic seconds."""
        return self._clock.monotonic()

    def answered(self, model_id: str | None) -> None:
        """Record that a model answered a request."""
        self._since.pop(model_id, None)

    def failed(self, received: ReceivedJob, model_id: str | None, life: float) -> float:
        """Record that a model failed to answer this job. Return the seconds that the job may still wait for the model.

        `life` is the time from the job's first try to its deadline, in seconds. Raises CandidateAway if a candidate has
        not answered for PATIENCE_SECONDS, or for half of the job's `life` if that is shorter.
        """
        now = self.now
        away = now - self._since.setdefault(model_id, now)
        self._failed_at[model_id] = now
        trial = self._rollouts.trial(received)
        if trial is None or model_id != trial.candidate:
            return math.inf
        left = min(PATIENCE_SECONDS, life / 2) - away
        if left > 0:
            return left
        if self._throttle.admit(now) is not None:
            log.warning(
                "A rollout's candidate does not answer; letting the primary answer the candidate's jobs.",
                action="rollout-candidate-away",
                candidate=trial.candidate,
                away_seconds=round(away),
            )
        raise CandidateAway(trial.primary)

    def has_failed(self, model_id: str | None, since: float) -> bool:
        """True if a model failed to answer a request at or after `since`, in monotonic seconds."""
        return self._failed_at.get(model_id, -math.inf) >= since
