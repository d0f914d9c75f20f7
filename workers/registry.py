"""Which engine answers for which model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_FORWARDS = 3
"""More would be two workers that each say that the other has the model."""


_NOBODY_HAS_IT = (
    "no engine of this fleet has this model: leave it out, or have the operator name it in POSTBACK_WORKER__MODELS"
)


class UnknownModel(Exception):  # noqa: N818 - it names what is wrong with the job
    """No engine of this fleet has the model."""


@dataclass(frozen=True, slots=True)
class Forward:
    """The job belongs to another engine's lane. `times` is how often it was forwarded, this one included."""

    lane: str | None
    times: int


@dataclass(frozen=True, slots=True)
class Ours:
    """The engine of this worker answers."""


class Registry:
    """Routes jobs by `model_id`.

    `served` are the names that this worker's engine answers to; `models` says for the others which lane has them, None
    being the shared lane; `lane` is the worker's own.
    """

    def __init__(self, served: Iterable[str], lane: str | None, models: Mapping[str, str | None]) -> None:
        self._served = frozenset(served)
        self._lane = lane
        self._models = dict(models)

    def route(self, model_id: str | None, forwarded: str | None) -> Ours | Forward:
        """Where a job belongs. Raises UnknownModel."""
        if model_id is None or model_id in self._served:
            return Ours()
        if model_id not in self._models:
            raise UnknownModel(_NOBODY_HAS_IT)
        if self._models[model_id] == self._lane:
            return Ours()
        times = times_in(forwarded) + 1
        if times > MAX_FORWARDS:
            raise UnknownModel("the workers' model registries contradict each other: the job was forwarded in a circle")
        return Forward(self._models[model_id], times)


def times_in(header: str | None) -> int:
    """How often, as a header says. Anybody can write one: what is no number is none, and a long one is enough."""
    if header is None or not header.isdecimal():
        return 0
    return int(header) if len(header) < 4 else MAX_FORWARDS
