"""The engines of a worker, named on its command line or by its model registry, and the watch over the registry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from schemas.settings import SettingsRefused, read_settings
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.engines.base import Engine, EngineAway, EngineRefused
from workers.engines.models.mistakes import RegistryRefused
from workers.engines.models.registry_engine import RegistryEngine
from workers.engines.models.registry_file import ModelRegistry, read_registry
from workers.engines.openai_http.settings import OpenAISettings
from workers.engines.registry import create, engine_settings
from workers.enrichment.answering.profile import profile_names
from workers.enrichment.settings import EnrichmentSettings
from workers.inference.routing import Registry
from workers.inference.settings import WorkerSettings
from workers.system.side_task import SideTask
from workers.system.tls_files import Stamp, stamp

LOOK_SECONDS = 5.0

log = get_logger()


class RegistryWatch(SideTask):
    """Reads the registry file again within five seconds of a change.

    A file that is invalid or needs a restart has no effect. A change that comes while an engine is away is used when
    the engine is back. `read` raises RegistryRefused, SettingsRefused, and the OSError of an unreadable folder of
    profiles.
    """

    def __init__(
        self, path: Path, read: Callable[[], ModelRegistry], engine: RegistryEngine, routes: Registry, lane: str | None
    ) -> None:
        self._path = path
        self._read = read
        self._engine = engine
        self._routes = routes
        self._lane = lane
        self._seen: Stamp | None = stamp(path)
        self._waiting: Stamp | None = None
        """The stamp of a changed file that is not used yet because an engine is away."""

    async def ended(self) -> None:
        """Watch the file until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Use the file if it has changed since the last look."""
        seen = stamp(self._path)
        if seen == self._seen:
            return
        try:
            registry = await asyncio.to_thread(self._read)
            await self._engine.change(registry)
        except OSError as error:  # `_seen` stays unchanged, so that the next look tries again
            _report(f"the folder of the profiles cannot be read ({error.strerror})")
            return
        except EngineAway as why:
            if seen != self._waiting:
                log.info(
                    "The model registry's file changed while an engine is away; using it once the engine is back.",
                    action="registry-reload-waits",
                    problem=str(why),
                )
            self._waiting = seen
            return
        except (RegistryRefused, EngineRefused, SettingsRefused) as why:
            self._seen = seen
            _report(str(why))
            return
        self._seen = seen
        self._routes.replace(self._engine.models, self._lane, registry.lanes())
        log.info("The model registry's file changed; using its new content.", action="registry-reloaded")


def _report(problem: str) -> None:
    log.error(
        "The model registry's file changed and cannot be used; going on with the registry in memory.",
        action="registry-reload-failed",
        problem=problem,
    )


def read_file(path: Path, *, with_secrets: bool = True) -> ModelRegistry:
    """Read the registry's file with the settings of this environment. Raises RegistryRefused and SettingsRefused."""
    profiles = profile_names(read_settings(EnrichmentSettings).profiles_folder)
    return read_registry(path, read_settings(engine_settings()), profiles=profiles, with_secrets=with_secrets)


def engine_of(name: str | None, model: str | None, clock: Clock, metrics: Metrics) -> Engine:
    """Make the engine of this name, or the engines of the registry. Raises RegistryRefused and SettingsRefused."""
    if name is not None:
        return create(name, read_settings(engine_settings()), metrics, clock, model=model)
    return registry_engine(read_settings(WorkerSettings), clock, metrics)


def model_servers(engine: Engine, name: str | None) -> list[str]:
    """Return the URLs of the model servers that speak OpenAI's protocol; other engines run here, or are services."""
    if isinstance(engine, RegistryEngine):
        lane = read_settings(WorkerSettings).lane
        sections = [section for model in engine.registry.of_lane(lane).values() for section in model.sections]
    else:
        sections = [read_settings(engine_settings()).section(name)] if name is not None else []
    return list(dict.fromkeys(each.base_url.rstrip("/") for each in sections if isinstance(each, OpenAISettings)))


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
