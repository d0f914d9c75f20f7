"""The engines of a worker, named on its command line or by its model registry, and the watch over the registry."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from schemas.settings import SettingsRefused, read_settings
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from workers.engines.base import Engine
from workers.engines.models.registry_engine import RegistryEngine
from workers.engines.models.registry_file import ModelRegistry, read_registry
from workers.engines.registry import create, engine_settings
from workers.enrichment.answering.profile import profile_names
from workers.enrichment.settings import EnrichmentSettings
from workers.inference.registry import Registry
from workers.inference.registry_watch import RegistryWatch
from workers.inference.settings import WorkerSettings


def read_file(path: Path, *, with_secrets: bool = True) -> ModelRegistry:
    """Read the registry's file with the settings of this environment. Raises RegistryRefused and SettingsRefused."""
    profiles = profile_names(read_settings(EnrichmentSettings).profiles_folder)
    return read_registry(path, read_settings(engine_settings()), profiles=profiles, with_secrets=with_secrets)


def engine_of(name: str | None, model: str | None, clock: Clock, metrics: Metrics) -> Engine:
    """Make the engine of this name, or the engines of the registry. Raises RegistryRefused and SettingsRefused."""
    if name is not None:
        return create(name, read_settings(engine_settings()), metrics, clock, model=model)
    return registry_engine(read_settings(WorkerSettings), clock, metrics)


def registry_engine(settings: WorkerSettings, clock: Clock, metrics: Metrics) -> RegistryEngine:
    """Make the engines of the registry's models. Raises RegistryRefused and SettingsRefused."""
    if settings.registry is None:
        raise SettingsRefused("name an engine with --engine, or the model registry with POSTBACK_WORKER__REGISTRY")
    registry = read_file(settings.registry)
    if not registry.of_lane(settings.lane):
        raise SettingsRefused(
            f"POSTBACK_WORKER__LANE: the registry has no model of lane {settings.lane or 'shared'}; "
            "give a model this `lane`, or start the worker in another lane"
        )
    return RegistryEngine(registry, settings.lane, clock, metrics)


def registry_watch(path: Path, engine: RegistryEngine, routes: Registry, lane: str | None) -> RegistryWatch:
    """Return the task that reads the registry's file again when the file changes."""
    return RegistryWatch(path, partial(read_file, path), engine, routes, lane)
