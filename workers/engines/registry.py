"""The registry at work: an engine's module and settings by its name."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol, cast

from pydantic import Field, create_model

from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines import ENGINES
from workers.engines.base import Engine
from workers.engines.settings import EngineSection, EngineSettings


class EngineModule(Protocol):
    """The contents of an engine's module."""

    @property
    def Settings(self) -> type[EngineSection]:  # noqa: N802 - a class
        """The engine's settings: its section of `POSTBACK_ENGINE__…`."""
        ...

    def create(self, settings: Any, metrics: Metrics, clock: Clock) -> Engine:
        """An engine that is not started yet, its `name` the registered one. Raises ValueError without a model."""
        ...


def create(name: str, settings: EngineSettings, metrics: Metrics, clock: Clock, *, model: str | None = None) -> Engine:
    """An engine that is not started yet. `model` beats the settings.

    Raises KeyError for a name that is not registered, and ValueError where the engine needs a model and has none.
    """
    section = settings.section(name)
    return _module(name).create(section.model_copy(update={"model": model or section.model}), metrics, clock)


def engine_settings() -> type[EngineSettings]:
    """The settings class with a section for each registered engine. Imports their modules."""
    return _settings_class(tuple(ENGINES))


@lru_cache
def _settings_class(names: tuple[str, ...]) -> type[EngineSettings]:
    kinds = {name: _module(name).Settings for name in names}
    sections: dict[str, Any] = {name: (kind, Field(default_factory=kind)) for name, kind in kinds.items()}
    return create_model(
        EngineSettings.__name__,
        __base__=EngineSettings,
        __doc__=EngineSettings.__doc__,
        __module__=EngineSettings.__module__,
        **sections,
    )


def _module(name: str) -> EngineModule:
    return cast("EngineModule", import_module(ENGINES[name]))
