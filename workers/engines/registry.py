"""Finds an engine's module and settings by the engine's name."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol, cast

from pydantic import Field, create_model

from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines import ENGINES
from workers.engines.address import AddressEngine
from workers.engines.settings import EngineSection, EngineSettings


class EngineModule(Protocol):
    """The attributes that an engine's module must have."""

    @property
    def Settings(self) -> type[EngineSection]:  # noqa: N802 - a class
        """The engine's settings: its section of `POSTBACK_ENGINE__…`."""
        ...

    def create(self, settings: Any, metrics: Metrics, clock: Clock) -> AddressEngine:
        """Make an engine with the registered `name`, without starting it. The settings have the model that it needs."""
        ...


def create(
    name: str, settings: EngineSettings, metrics: Metrics, clock: Clock, *, model: str | None = None
) -> AddressEngine:
    """Make an engine without starting it. `model` overrides the model in the settings.

    Raises KeyError for a name that is not registered, and ValueError if the engine needs a model and has none.
    """
    section = settings.section(name)
    return create_of(name, section.model_copy(update={"model": model or section.model}), metrics, clock)


def create_of(name: str, section: EngineSection, metrics: Metrics, clock: Clock) -> AddressEngine:
    """Make an engine with these settings, without starting it. Raises the errors of `create`."""
    if section.model is None and section.needs_model:
        raise ValueError(f"the {name} engine needs the name of a model")
    engine = _module(name).create(section, metrics, clock)
    engine.family = section.model_family()
    return engine


def engine_settings() -> type[EngineSettings]:
    """Return the settings class with a section for each registered engine. Imports all engines' modules."""
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
