"""The fleet's rollouts, read from `model_rollouts`: they decide which model answers a job of an alias.

A canary forwards no job to a lane that no worker reads, by the workers' announcements. If a candidate is away during
the canary, the primary answers its jobs, so that no job waits for it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from schemas.codec import ReceivedJob
from schemas.rollout.facts import DEFAULT_ALIAS, InvalidRollout, Rollout, RolloutTable, Step
from schemas.settings import KafkaSettings
from schemas.worker import LIVE_SECONDS, InvalidAnnouncement, read_announcement
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.throttle import LogThrottle
from workers.inference.routing import Registry, times_in
from workers.kafka.compacted import Follower
from workers.stage.record import Output
from workers.system.errors import ProcessError
from workers.system.side_task import SideTask

MOST_WORKERS = 1_000
"""Cap on the workers that are kept. Announcements of further workers are skipped until one of these ends."""
_AGAIN_SECONDS = 60.0

log = get_logger()


class LaneReaders:
    """The lane of each running worker. All methods run on the event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._workers: dict[bytes | None, tuple[str | None, float]] = {}
        """Maps each worker's key to its lane, and to the time of its last announcement in monotonic seconds."""

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Apply a record of `fleet_workers`. Unreadable records are skipped."""
        if value is None:
            self._workers.pop(key, None)
            return
        try:
            said = read_announcement(key, value)
        except InvalidAnnouncement:
            return
        if len(self._workers) >= MOST_WORKERS:
            self._workers = {each: seen for each, seen in self._workers.items() if self._is_live(seen[1])}
        if key in self._workers or len(self._workers) < MOST_WORKERS:
            self._workers[key] = said.lane, self._clock.monotonic()

    def has(self, lane: str | None) -> bool:
        """True if a running worker reads this lane; None is the shared lane."""
        return any(read == lane and self._is_live(at) for read, at in self._workers.values())

    def _is_live(self, at: float) -> bool:
        return self._clock.monotonic() - at <= LIVE_SECONDS


class LaneWatch(SideTask):
    """Follows `fleet_workers`. The process goes on if the topic cannot be read: its lanes then count as read."""

    def __init__(self, kafka: KafkaSettings, clock: Clock) -> None:
        self._kafka = kafka
        self._clock = clock
        self._readers = LaneReaders(clock)
        self._follower = Follower(kafka, clock)
        self._is_known = False

    def is_read(self, lane: str | None) -> bool:
        """True if a running worker reads the lane, or if the announcements are not known now."""
        return not self._is_known or bool(self._follower.reasons()) or self._readers.has(lane)

    async def start(self) -> None:
        """Read the present announcements. A failure is logged, and `ended` tries again."""
        try:
            kept_ms = round(1000 * LIVE_SECONDS)
            await self._follower.follow(self._kafka.topics.workers, self._readers.apply, kept_ms)
            self._is_known = True
        except ProcessError as error:
            _report(error)

    async def ended(self) -> None:
        """Follow the topic until cancelled. If that fails, try again after a minute."""
        while True:
            try:
                if self._is_known:
                    await self._follower.ended()
            except ProcessError as error:
                self._is_known = False
                _report(error)
            await self._follower.close()
            await asyncio.sleep(_AGAIN_SECONDS)
            self._follower = Follower(self._kafka, self._clock)
            await self.start()

    async def close(self) -> None:
        """Stop following."""
        await self._follower.close()


def _report(error: ProcessError) -> None:
    log.warning(
        "The workers' announcements cannot be read; forwarding a candidate's jobs without them for now.",
        action="announcements-unread",
        problem=str(error),
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """The models of a job that goes to a candidate before its promotion. `primary` is None for the default model."""

    candidate: str
    primary: str | None


class Rollouts:
    """Routes jobs by the rollouts of their aliases. All methods run on one event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._table = RolloutTable()
        self._unknown: set[str] = set()
        """Candidates that were logged as unknown, so that each is logged once."""
        self._unread: set[str] = set()
        """The ids of rollouts whose candidate's lane was logged as unread, so that each is logged once."""
        self.on_change: list[Callable[[Rollout], object]] = []
        """Called with each rollout that is new or has a new step."""
        self.is_read: Callable[[str | None], bool] = lambda lane: True
        """Tells whether a running worker reads a lane; None is the shared lane. The process sets a `LaneWatch` here."""

    @property
    def are_any(self) -> bool:
        """True if any alias has or had a rollout."""
        return bool(self._table.by_alias)

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Apply a record of `model_rollouts`."""
        before = dict(self._table.by_alias)
        try:
            self._table.apply(key, value)
        except InvalidRollout as error:
            log.warning(
                "Skipping an unreadable record of model_rollouts.", action="rollout-unreadable", problem=str(error)
            )
            return
        for alias, rollout in self._table.by_alias.items():
            known = before.get(alias)
            if known is not None and (known.order, known.step) == (rollout.order, rollout.step):
                continue
            log.info(
                "A rollout of a model has a new step; following it.",
                action="rollout-step",
                alias=alias,
                candidate=rollout.order.candidate,
                step=rollout.step,
                why=rollout.steps[-1].why if rollout.steps else "started",
            )
            for changed in self.on_change:
                changed(rollout)

    def running(self) -> list[Rollout]:
        """Return the rollouts that are not over."""
        return [rollout for rollout in self._table.by_alias.values() if not rollout.step.is_over]

    def with_id(self, rollout_id: str) -> Rollout | None:
        """Return the rollout with this id; None if the id is unknown, or if a later rollout replaced this one."""
        return next((each for each in self._table.by_alias.values() if each.order.id == rollout_id), None)

    def of(self, received: ReceivedJob) -> Rollout | None:
        """Return the rollout of the job's alias; None if there is none."""
        return self._table.by_alias.get(received.alias) if received.alias is not None else None

    def trial(self, received: ReceivedJob) -> Trial | None:
        """Return the models of a job that a candidate on trial answers.

        Return None for another job, and for a job whose primary no engine of this fleet has.
        """
        rollout, model_id = self.of(received), received.job.model_id
        if rollout is None or rollout.step is Step.PROMOTED or model_id != rollout.order.candidate:
            return None
        alias = rollout.order.alias
        primary = rollout.order.primary or (alias if alias != DEFAULT_ALIAS else None)
        if primary == model_id or not self._registry.knows(primary):
            return None
        return Trial(model_id, primary)

    def routed(self, received: ReceivedJob, forwarded: str | None) -> ReceivedJob:
        """Return the job with the model that its alias stands for now. `forwarded` is the job's header of that name."""
        asked = received.job.model_id
        rollout = self._table.by_alias.get(asked or DEFAULT_ALIAS)
        if rollout is None:
            return received
        model = self._model(rollout, received, has_moved=times_in(forwarded) > 0)
        job = received.job if model in (None, asked) else received.job.model_copy(update={"model_id": model})
        return replace(received, job=job, alias=rollout.order.alias)

    def _model(self, rollout: Rollout, received: ReceivedJob, *, has_moved: bool) -> str | None:
        """Return the model for a job; None if the job gets the same model as without rollouts.

        Only the first worker that reads a job decides, because workers that have read different steps would otherwise
        forward the job in a circle. Only an aborted rollout sends a job back from the candidate's lane. Until the
        promotion, the primary answers the jobs of a candidate whose lane no worker reads.
        """
        order = rollout.order
        primary, candidate = order.primary or received.job.model_id, order.candidate
        takes = rollout.takes(received.tenant, received.job_id)
        if has_moved:
            if not self._registry.serves(candidate):
                takes = False
            elif not self._registry.serves(primary):
                takes = rollout.step is not Step.ABORTED
        if not takes:
            return order.primary
        if not self._registry.knows(candidate):
            self._warn_of_unknown(candidate)
            return order.primary
        if has_moved or rollout.step is Step.PROMOTED or self._can_answer(candidate):
            return candidate
        self._warn_of_unread(rollout)
        return order.primary

    def _can_answer(self, candidate: str) -> bool:
        """True if this worker has the candidate, or another worker reads the candidate's lane."""
        return self._registry.serves(candidate) or self.is_read(self._registry.lane(candidate))

    def _warn_of_unread(self, rollout: Rollout) -> None:
        if rollout.order.id not in self._unread:
            self._unread.add(rollout.order.id)
            log.warning(
                "No running worker reads the lane of a rollout's candidate; letting the primary answer its jobs.",
                action="rollout-lane-unread",
                candidate=rollout.order.candidate,
            )

    def _warn_of_unknown(self, candidate: str) -> None:
        if candidate not in self._unknown:
            self._unknown.add(candidate)
            log.warning(
                "This worker's model registry has no such candidate; answering the alias's jobs with the primary.",
                action="rollout-candidate-unknown",
                candidate=candidate,
            )


PATIENCE_SECONDS = 10.0
"""Seconds without an answer from a candidate after which the primary answers the candidate's jobs."""
_SAID_SECONDS = 10.0


class CandidateAway(Exception):  # noqa: N818 - named after the event
    """The candidate has answered no request for a while, so the primary has to answer the job."""

    def __init__(self, primary: str | None) -> None:
        super().__init__("the rollout's candidate does not answer")
        self.primary = primary
        self.reports: list[Output] = []
        """The report of the candidate's failure, if the job is sampled."""
        self.at = 0.0
        """The monotonic seconds since which the primary has the job."""


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
