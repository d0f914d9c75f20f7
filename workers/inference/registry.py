"""Models to engines: where a job belongs, by its `model_id`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MAX_FORWARDS = 3
"""A job that moved more often goes in a circle: two workers each claim that the other has the model."""


_NAMES_SHOWN = 8
_NAME_SHOWN = 64
_UNUSUAL = re.compile(r"[^A-Za-z0-9._:/@+-]")


class UnknownModel(Exception):  # noqa: N818 - it names what is wrong with the job
    """No engine of this fleet has the model."""


@dataclass(frozen=True, slots=True)
class Forward:
    """The job belongs to another engine's lane. `times` counts its forwards, this one included."""

    lane: str | None
    times: int


@dataclass(frozen=True, slots=True)
class Ours:
    """The engine of this worker answers the job."""


class Registry:
    """Routes jobs by `model_id`.

    `served`: the names of this worker's engine, the shown one first. `models`: other names, each with its lane, None
    for the shared lane. `lane`: this worker's own.
    """

    def __init__(self, served: Iterable[str], lane: str | None, models: Mapping[str, str | None]) -> None:
        names = tuple(served)
        self._served = frozenset(names)
        self.shown = tuple(dict.fromkeys((*names[:1], *models)))
        """The models that a job may name, as far as this worker knows the fleet, without folders."""
        self.announced = tuple(dict.fromkeys((*self.shown, *(name for name in names[1:] if "/" not in name))))
        """All names that `model_id` may have, without the model's folder."""
        self._lane = lane
        self._models = dict(models)

    def route(self, model_id: str | None, forwarded: str | None) -> Ours | Forward:
        """The lane of a job. Raises UnknownModel."""
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
        """The error for the job's author, with the job's own name for the model and the names that would do."""
        return (
            f"no engine of this fleet has the model {quoted(model_id)}; there is {listed(self.shown)}: name one of "
            "these or leave it out (`postback submit --model` does either), or have the operator add an alias to "
            "POSTBACK_WORKER__MODELS"
        )


def listed(names: Sequence[str]) -> str:
    """The first eight names of models, quoted, as a phrase."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(map(quoted, names[:_NAMES_SHOWN])) + (f" and {more} more" if more > 0 else "")


def quoted(name: str) -> str:
    """A name in quotes, cut, and without characters that names of models do not have."""
    plain = _UNUSUAL.sub("?", name[:_NAME_SHOWN])
    return f'"{plain}…"' if len(name) > _NAME_SHOWN else f'"{plain}"'


def times_in(header: str | None) -> int:
    """The count in a header, which any producer may write: 0 for other text, and `MAX_FORWARDS` for a long number."""
    if header is None or not header.isdecimal():
        return 0
    return int(header) if len(header) < 4 else MAX_FORWARDS
