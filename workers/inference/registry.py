"""Which engine answers for which model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MAX_FORWARDS = 3
"""More would be two workers that each say that the other has the model."""


_NAMES_SHOWN = 8
_NAME_SHOWN = 64
_UNUSUAL = re.compile(r"[^A-Za-z0-9._:/@+-]")


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

    `served` are the names that this worker's engine answers to, first that which is shown; `models` says for the others
    which lane has them, None being the shared lane; `lane` is the worker's own.
    """

    def __init__(self, served: Iterable[str], lane: str | None, models: Mapping[str, str | None]) -> None:
        names = tuple(served)
        self._served = frozenset(names)
        self.shown = tuple(dict.fromkeys((*names[:1], *models)))
        """The models that a job may name, as far as this worker knows the fleet. Where a model is kept is not said."""
        self.announced = tuple(dict.fromkeys((*self.shown, *(name for name in names[1:] if "/" not in name))))
        """All names that a job may have in `model_id`, but for the folder where the model is kept."""
        self._lane = lane
        self._models = dict(models)

    def route(self, model_id: str | None, forwarded: str | None) -> Ours | Forward:
        """Where a job belongs. Raises UnknownModel."""
        if model_id is None or model_id in self._served:
            return Ours()
        if model_id not in self._models:
            raise UnknownModel(self._why_unknown(model_id))
        if self._models[model_id] == self._lane:
            return Ours()
        times = times_in(forwarded) + 1
        if times > MAX_FORWARDS:
            raise UnknownModel("the workers' model registries contradict each other: the job was forwarded in a circle")
        return Forward(self._models[model_id], times)

    def _why_unknown(self, model_id: str) -> str:
        """For the job's author, who needs to see both the name that the job has and those that would do."""
        return (
            f"no engine of this fleet has the model {quoted(model_id)}; there is {listed(self.shown)}: name one of "
            "these or leave it out (`postback submit --model` does either), or have the operator add an alias to "
            "POSTBACK_WORKER__MODELS"
        )


def listed(names: Sequence[str]) -> str:
    """The first eight names of models, for people."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(map(quoted, names[:_NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")


def quoted(name: str) -> str:
    """A name for people: cut, and without characters that names of models do not have."""
    plain = _UNUSUAL.sub("?", name[:_NAME_SHOWN])
    return f'"{plain}…"' if len(name) > _NAME_SHOWN else f'"{plain}"'


def times_in(header: str | None) -> int:
    """How often, as a header says. Anybody can write one: what is no number is none, and a long one is enough."""
    if header is None or not header.isdecimal():
        return 0
    return int(header) if len(header) < 4 else MAX_FORWARDS
