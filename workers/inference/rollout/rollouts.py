"""The fleet's rollouts, read from `model_rollouts`: they decide which model answers a job of an alias."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from schemas.codec import ReceivedJob
from schemas.rollout.facts import DEFAULT_ALIAS, InvalidRollout, Rollout, RolloutTable, Step
from telemetry.logs import get_logger
from workers.inference.registry import Registry, times_in

log = get_logger()


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
