"""Routing of jobs to engines by `model_id`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from workers.engines.models.mistakes import listed, quoted

MAX_FORWARDS = 3
"""Limit on a job's forwards.

A job that exceeds the limit goes in a circle: two workers each claim that the other one has the model.
"""


class UnknownModel(Exception):  # noqa: N818 - named after the job's problem
    """No engine of this fleet has the model."""


@dataclass(frozen=True, slots=True)
class Forward:
    """The job belongs to another engine's lane. `times` counts the job's forwards, this one included."""

    lane: str | None
    times: int


class Registry:
    """Routes jobs by `model_id`.

    `served` lists the model names of this worker's engine; results show the first one. `models` maps other names to
    engine lanes, with None for the shared lane. `lane` is this worker's own lane.
    """

    def __init__(self, served: Iterable[str], lane: str | None, models: Mapping[str, str | None]) -> None:
        self.replace(served, lane, models)

    def replace(self, served: Iterable[str], lane: str | None, models: Mapping[str, str | None]) -> None:
        """Replace the names by which jobs are routed."""
        names = tuple(served)
        self._served = frozenset(names)
        self.shown = tuple(dict.fromkeys((*names[:1], *models)))
        """Model names for people: the first name of this worker's engine, and the names of the registry."""
        self.announced = tuple(dict.fromkeys((*self.shown, *(name for name in names[1:] if "/" not in name))))
        """Model names for the announcement: the shown names, and the engine's other names except paths."""
        self._lane = lane
        self._models = dict(models)

    def route(self, model_id: str | None, forwarded: str | None) -> Forward | None:
        """Return the other lane that a job belongs to; None if the worker's own engine answers the job.

        `forwarded` is the job's header of that name. Raises UnknownModel.

        A job without a model leaves the shared lane only for a rollout's candidate, so another lane sends it back.
        """
        times = times_in(forwarded) + 1
        if model_id is None and times > 1 and self._lane is not None:
            return Forward(None, times)
        if model_id is None or model_id in self._served:
            return None
        if model_id not in self._models:
            raise UnknownModel(self._why_unknown(model_id))
        if self._models[model_id] == self._lane:
            return None
        if times > MAX_FORWARDS:
            raise UnknownModel("the workers' model registries contradict each other: the job was forwarded in a circle")
        return Forward(self._models[model_id], times)

    def knows(self, model_id: str | None) -> bool:
        """True if an engine of this fleet has the model."""
        return model_id is None or model_id in self._served or model_id in self._models

    def serves_here(self, model_id: str | None) -> bool:
        """True if `route` keeps a job that was never forwarded."""
        return model_id is None or model_id in self._served

    def serves(self, model_id: str | None) -> bool:
        """True if this worker's own engine has the model."""
        return model_id is None or model_id in self._served or self._models.get(model_id, "") == self._lane

    def lane(self, model_id: str) -> str | None:
        """Return the lane of a model that is not this worker's own; None for the shared lane."""
        return self._models.get(model_id)

    def _why_unknown(self, model_id: str) -> str:
        """Return the error's text for the job's author, with the unknown name, the known names and the fix."""
        return (
            f"no engine of this fleet has the model {quoted(model_id)}; there is {listed(self.shown)}: name one of "
            "these or leave it out (`postback submit --model` does either), or have the operator add an alias to "
            "POSTBACK_WORKER__MODELS or the registry"
        )


def times_in(header: str | None) -> int:
    """Return the count in a header that any producer may write.

    The count is 0 for text that is not a number, and `MAX_FORWARDS` for a long number.
    """
    if header is None or not header.isdecimal():
        return 0
    return int(header) if len(header) < 4 else MAX_FORWARDS
