"""Records of `model_rollouts`: orders of rollouts, and the steps that each rollout has reached.

The topic is compacted. An order's key is [alias, "order"], so that an alias has one rollout at a time. A step's key is
[alias, "<rollout>.<step>"]: several workers may write the same step, and none overwrites another step. The state
follows from the set of steps alone, whatever their order: a rollout with the step `aborted` is aborted for good.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Annotated, Final

from pydantic import Field, StringConstraints, TypeAdapter

from schemas.bounded import WireModel
from schemas.compacted import CompactedCodec
from schemas.job import Identifier

DEFAULT_ALIAS: Final = "default"
"""The alias of jobs without `model_id`."""
_ORDER: Final = "order"
_ALIAS_PATTERN: Final = r"^[\x21-\x7e]+$"
RolloutId = Annotated[str, StringConstraints(pattern=r"^ro_[0-9a-f]{16}$")]
_KEY: TypeAdapter[tuple[str, str]] = TypeAdapter(
    tuple[Identifier, Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=_ALIAS_PATTERN)]]
)


class Step(StrEnum):
    """A step of a rollout. A rollout begins with `shadow`, which has no record."""

    SHADOW = "shadow"
    """The candidate answers copies of jobs; its answers are compared and thrown away."""
    CANARY_1 = "canary-1"
    """The candidate answers 1 % of the alias's jobs."""
    CANARY_10 = "canary-10"
    CANARY_50 = "canary-50"
    CANARY_100 = "canary-100"
    """The candidate answers all jobs and is still watched."""
    PROMOTED = "promoted"
    """The alias stands for the candidate."""
    ABORTED = "aborted"
    """The alias stands for the primary, whatever other steps the rollout has."""

    @property
    def share(self) -> float:
        """The share of the alias's jobs that the candidate answers."""
        return _SHARES[self]

    @property
    def is_over(self) -> bool:
        """True if no further step follows by itself."""
        return self in (Step.PROMOTED, Step.ABORTED)

    @property
    def next(self) -> Step:
        """The step that follows if this step ends well."""
        return self if self.is_over else _WAY[_WAY.index(self) + 1]


_SHARES: Final = {
    Step.SHADOW: 0.0,
    Step.CANARY_1: 0.01,
    Step.CANARY_10: 0.1,
    Step.CANARY_50: 0.5,
    Step.CANARY_100: 1.0,
    Step.PROMOTED: 1.0,
    Step.ABORTED: 0.0,
}
_WAY: Final = tuple(_SHARES)


class RolloutOrder(WireModel):
    """An operator's order to try a candidate."""

    id: RolloutId
    alias: Identifier
    """The name in jobs' `model_id`; `default` for jobs without one."""
    primary: Identifier | None = None
    """The model that an earlier rollout gave the alias; if absent, the alias means the same model as without
    rollouts."""
    candidate: Identifier
    """The model that may replace the primary."""
    sample: float = Field(default=0.1, gt=0, le=1)
    """The share of the alias's jobs that are compared."""
    max_jobs: int = Field(default=2000, ge=1, le=1_000_000)
    """Number of compared jobs after which an undecided rollout is aborted."""
    canary_jobs: int = Field(default=50, ge=1, le=1_000_000)
    """Number of the candidate's jobs that are watched at each step before the next step."""
    per_second: float = Field(default=20.0, gt=0, le=10_000)
    """The maximum number of jobs that each worker copies or reports in a second."""
    slower: float = Field(default=1.5, ge=1, le=1000)
    """An answer is slow if it takes longer than the primary's 95th percentile by this factor, and by over 250 ms."""
    at: int
    """Time of the order, Unix milliseconds."""


class RolloutStep(WireModel):
    """A step that a rollout has reached."""

    alias: Identifier
    rollout: RolloutId
    step: Step
    why: str = Field(max_length=1000)
    """The reason in words."""
    by: str = Field(max_length=200)
    """The worker's replica, or `operator`."""
    at: int
    """Time of the step, Unix milliseconds."""


class InvalidRollout(Exception):  # noqa: N818 - named after the record
    """A record of `model_rollouts` that cannot be read."""


_IS = {"key_is": "[alias, order or step]", "value_is": "an order or a step of a rollout"}
_ORDERS = CompactedCodec(_KEY, RolloutOrder, InvalidRollout, **_IS)
_STEPS = CompactedCodec(_KEY, RolloutStep, InvalidRollout, **_IS)


def order_record(order: RolloutOrder) -> tuple[bytes, bytes]:
    """Return the key and value of an order."""
    return _ORDERS.key_bytes((order.alias, _ORDER)), _ORDERS.write(order)


def step_key(alias: str, rollout: str, step: Step) -> bytes:
    """Return the key of a step's record."""
    return _STEPS.key_bytes((alias, f"{rollout}.{step}"))


def step_record(said: RolloutStep) -> tuple[bytes, bytes]:
    """Return the key and value of a step."""
    return step_key(said.alias, said.rollout, said.step), _STEPS.write(said)


@dataclass(frozen=True, slots=True)
class Rollout:
    """The state of an alias's rollout."""

    order: RolloutOrder
    steps: tuple[RolloutStep, ...] = ()
    """The steps so far, in the order of `_WAY`."""

    @property
    def step(self) -> Step:
        """The present step."""
        return self.steps[-1].step if self.steps else Step.SHADOW

    def takes(self, tenant: str, job_id: str) -> bool:
        """True if the candidate answers this job. A hash of the job's id decides, with the present step's share."""
        return share_of(self.order.id, "canary", tenant, job_id) < self.step.share

    def samples(self, tenant: str, job_id: str) -> bool:
        """True if this job belongs to the sample of jobs that are compared."""
        return share_of(self.order.id, "sample", tenant, job_id) < self.order.sample


def share_of(*parts: str) -> float:
    """Return a number from 0 to below 1 that depends on these texts alone, and is uniform over job ids."""
    digest = blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


@dataclass(slots=True)
class RolloutTable:
    """The rollouts of all aliases, from the records of `model_rollouts`."""

    _orders: dict[str, RolloutOrder] = field(default_factory=dict)
    _steps: dict[tuple[str, str], RolloutStep] = field(default_factory=dict)
    by_alias: dict[str, Rollout] = field(default_factory=dict)

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Apply a record; a value of None deletes the key. A record that raises InvalidRollout changes nothing."""
        alias, name = _ORDERS.read_key(key)
        if name == _ORDER:
            if value is None:
                self._orders.pop(alias, None)
            else:
                order = _ORDERS.read(value)
                if order.alias != alias:
                    raise InvalidRollout("the key is not the alias of the value")
                self._orders[alias] = order
        elif value is None:
            self._steps.pop((alias, name), None)
        else:
            step = _STEPS.read(value)
            if (alias, name) != (step.alias, f"{step.rollout}.{step.step}") or step.step is Step.SHADOW:
                raise InvalidRollout("the key is not the step of the value")
            self._steps[alias, name] = step
        self._renew(alias)

    def records_of(self, alias: str) -> list[bytes]:
        """Return the keys of all steps of an alias, of earlier rollouts too."""
        return [_STEPS.key_bytes(key) for key in self._steps if key[0] == alias]

    def _renew(self, alias: str) -> None:
        order = self._orders.get(alias)
        if order is None:
            self.by_alias.pop(alias, None)
            return
        steps = [each for (of, _), each in self._steps.items() if of == alias and each.rollout == order.id]
        self.by_alias[alias] = Rollout(order, tuple(sorted(steps, key=lambda each: _WAY.index(each.step))))
