"""Reads the model registry's file again when it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from schemas.settings import SettingsRefused
from telemetry.logs import get_logger
from workers.engines.models.mistakes import RegistryRefused
from workers.engines.models.registry_engine import NeedsRestart, NotYet, RegistryEngine
from workers.engines.models.registry_file import ModelRegistry
from workers.inference.registry import Registry
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
        except NotYet as why:
            if seen != self._waiting:
                log.info(
                    "The model registry's file changed while an engine is away; using it once the engine is back.",
                    action="registry-reload-waits",
                    problem=str(why),
                )
            self._waiting = seen
            return
        except (RegistryRefused, NeedsRestart, SettingsRefused) as why:
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
