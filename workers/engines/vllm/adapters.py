"""The LoRA adapters of one engine, by name: loaded at its start, and changed while it runs.

vLLM loads an adapter at the first request for it. If the folder is missing then, the engine ends with all requests in
flight. So each adapter is loaded before a job can name it, and stays in memory until its last job has ended. vLLM
therefore never reads a vanished folder again.

A changed folder makes a new version of the adapter, with a number and a vLLM name of its own. vLLM tells the requests
of a batch apart by that name, and the keys of its prefix cache contain the name. So a job uses one version, and never
the cache of another version.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from telemetry.logs import get_logger
from workers.engines.base import EngineRefused, EngineUnavailable, RequestRejected
from workers.engines.vllm.adapter_files import (
    AdapterRefused,
    Tensor,
    base_tensors,
    is_folder,
    rank_of,
    require_fit,
    room_for,
)
from workers.engines.vllm.loading import short, while_alive
from workers.engines.vllm.settings import VllmSettings
from workers.system.paths import expanded

MOST_IN_A_BATCH: Final = 8
"""The number of adapters that one batch may use, unless the settings give a number. Each adapter needs GPU memory.

Requests for further adapters wait for the next batch.
"""
MOST_IN_MEMORY: Final = 128
"""The least room for adapters in the engine: 64 of the registry's file, and 64 removed ones whose jobs still run.

Unused room takes no memory. Beyond the room, vLLM would evict an adapter, and read its folder again later.
"""
USUAL_RANK: Final = 16
"""vLLM's default rank, for which an engine without adapters has room if only `max_loras` is set."""
_ROOM: Final = "`max_lora_rank` in POSTBACK_ENGINE__VLLM__EXTRA"

log = get_logger()


@dataclass(eq=False, slots=True)
class _Version:
    """One adapter of one folder."""

    name: str
    folder: Path
    number: int
    refused: str | None = None
    """The reason why jobs are rejected; None for a usable adapter."""
    jobs: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the last job ends."""

    @property
    def vllm_name(self) -> str:
        """The version's name in vLLM, different from the name of any other version."""
        return f"{self.name}#{self.number}"

    def request(self) -> Any:
        """Return the adapter as vLLM's `LoRARequest`."""
        return lora_request(self.vllm_name, self.number, str(self.folder))

    def reason(self, error: Exception) -> str:
        """Return the text of vLLM's error, without the adapter's path."""
        text = str(error).replace(str(self.folder), self.name).replace(self.vllm_name, self.name)
        return short(text) or type(error).__name__


class Adapters:
    """The adapters of one engine. `folders` has the folder of each name."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        self._numbers = count(1)
        self._served = {name: self._version(name, folder) for name, folder in _paths(folders).items()}
        self._leaving: dict[asyncio.Task[None], _Version] = {}
        """Maps each task that unloads a removed version after the version's last job to this version."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names that a job may give now."""
        return tuple(name for name, version in self._served.items() if version.refused is None)

    # -- the start -----------------------------------------------------------------------------------------------

    def arguments(self, settings: VllmSettings) -> dict[str, Any]:
        """Read the adapters' folders, and return vLLM's arguments for the adapters. Blocks.

        Unusable adapters are refused, and jobs that name one are rejected.
        """
        most, loras = settings.extra.get("max_lora_rank"), settings.extra.get("max_loras")
        ranks, base = [], base_tensors(settings.model)
        for version in self._served.values():
            version.refused = None
            try:
                ranks.append(_usable_rank(version.folder, base, most))
            except AdapterRefused as refused:
                _refuse(version, str(refused))
        usable = len(self.names)
        if not usable and most is None and loras is None:
            return {"enable_lora": False}
        return {
            "enable_lora": True,
            "max_lora_rank": room_for(most or max(ranks, default=USUAL_RANK)),
            "max_loras": loras or min(max(usable, 1), MOST_IN_A_BATCH),
            "max_cpu_loras": max(2 * len(self._served), MOST_IN_MEMORY),
        }

    async def add(self, llm: Any) -> None:
        """Load the adapters into a new or paused engine, and note each adapter that the engine refuses.

        Raises EngineRefused, with the adapter's name, if the engine died while loading the adapter.
        """
        for version in [version for version in self._served.values() if version.refused is None]:
            try:
                await _loaded(llm, version)
            except AdapterRefused as refused:
                _refuse(version, str(refused))

    def require_folders(self) -> None:
        """Raise EngineRefused if the folder of an adapter in use is gone, since new weights need the folder. Blocks."""
        for name, version in self._served.items():
            if version.refused is None and not is_folder(version.folder):
                raise EngineRefused(f"the folder of the adapter {name} is gone, and new weights need it once more")

    # -- jobs ----------------------------------------------------------------------------------------------------

    @contextmanager
    def in_use(self, name: str | None) -> Iterator[Any]:
        """Keep the adapter of this name in memory during the block. Yield its `LoRARequest`; None for no name.

        Raises RequestRejected for an unknown or refused adapter.
        """
        if name is None:
            yield None
            return
        version = self._served.get(name)
        if version is None:
            raise RequestRejected("adapter", "this engine has no adapter of this name")
        if version.refused is not None:
            raise RequestRejected("adapter", f"this adapter could not be loaded: {version.refused}")
        version.jobs += 1
        try:
            yield version.request()
        finally:
            version.jobs -= 1
            if not version.jobs:
                version.idle.set()

    # -- changes -------------------------------------------------------------------------------------------------

    async def change(self, llm: Any, settings: VllmSettings) -> None:
        """Serve the adapters of these settings from now on. Make all changes or none.

        New adapters are loaded while jobs run. Removed ones are unloaded after their last job. Raises EngineRefused,
        with the adapter and the fix, if an adapter cannot be loaded, and EngineUnavailable if the engine died.
        """
        folders = _paths(settings.adapters)
        kept = {name: version for name, version in self._served.items() if folders.get(name) == version.folder}
        new = {name: self._version(name, folder) for name, folder in folders.items() if name not in kept}
        if new:
            await asyncio.to_thread(_require_usable, [*new.values()], llm.vllm_config.lora_config, settings.model)
            await self._load(llm, [*new.values()])
        if llm.errored:
            raise EngineUnavailable("vLLM's process ended during the change")
        gone = [version for name, version in self._served.items() if name not in kept]
        self._served = {name: kept.get(name) or new[name] for name in folders}
        self._unload(llm, gone)
        log.info(
            "The engine's adapters changed; taking jobs for added ones, unloading removed ones after their last job.",
            action="adapters-changed",
            added=[*new],
            removed=[version.name for version in gone],
        )

    async def all_left(self) -> None:
        """Wait until all jobs with removed adapters have ended."""
        if self._leaving:
            await asyncio.wait({*self._leaving})

    def close(self) -> None:
        """Stop waiting to unload removed adapters, because they end with the engine."""
        for task in self._leaving:
            task.cancel()

    async def _load(self, llm: Any, versions: list[_Version]) -> None:
        """Load all versions into the running engine, or none. Raises EngineRefused and EngineUnavailable."""
        held = len(self._served) + len(self._leaving) + len(versions)
        if held > llm.vllm_config.lora_config.max_cpu_loras:
            raise EngineRefused(
                f"the engine would hold {held} adapters, with those that run their last jobs, and has room for "
                f"{llm.vllm_config.lora_config.max_cpu_loras}; save the file again later, or restart the worker"
            )
        try:
            for version in versions:
                await while_alive(llm, _loaded(llm, version))
        except AdapterRefused as refused:
            self._unload(llm, versions)
            raise _not_added(version, refused) from None
        except BaseException:
            self._unload(llm, versions)
            raise

    def _unload(self, llm: Any, versions: list[_Version]) -> None:
        for version in versions:
            if version.refused is None:
                task = asyncio.create_task(_unloaded(llm, version), name="vllm-adapter-unload")
                self._leaving[task] = version
                task.add_done_callback(self._leaving.pop)

    def _version(self, name: str, folder: Path) -> _Version:
        return _Version(name, folder, next(self._numbers))


def lora_request(name: str, number: int, folder: str) -> Any:
    """Return a `LoRARequest`. Imports vLLM."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, number, folder)


async def _loaded(llm: Any, version: _Version) -> None:
    """Load an adapter. Raises AdapterRefused, and EngineRefused if the engine died."""
    try:
        await llm.add_lora(version.request())
    except Exception as error:  # any error, since vLLM's process sends only its text
        if llm.errored:
            raise EngineRefused(f"the engine died while it loaded the adapter {version.name}") from error
        with suppress(Exception):
            await llm.remove_lora(version.number)  # frees the place of an adapter that failed late in its load
        raise AdapterRefused(version.reason(error)) from error


async def _unloaded(llm: Any, version: _Version) -> None:
    """Remove an adapter after its last job. If removed sooner, vLLM would read its folder again for a running job."""
    while version.jobs:
        version.idle.clear()
        await version.idle.wait()
    with suppress(Exception):  # a dead engine has no adapter to remove
        await while_alive(llm, llm.remove_lora(version.number))


def _require_usable(versions: list[_Version], room: Any, model: str | None) -> None:
    """Raise EngineRefused for an adapter that an engine with this `LoRAConfig` cannot take. Blocks."""
    if room is None:
        raise EngineRefused(f"the engine has no room for adapters; restart the worker, with {_ROOM} for later ones")
    base = base_tensors(model)
    for version in versions:
        try:
            _usable_rank(version.folder, base, room.max_lora_rank)
        except AdapterRefused as refused:
            raise _not_added(version, refused) from None


def _usable_rank(folder: Path, base: Mapping[str, Tensor], most: int | None) -> int:
    """Return the rank of an adapter that fits the model and has a rank of at most `most`. Raises AdapterRefused."""
    rank = rank_of(folder)
    if most is not None and rank > (room := room_for(most)):
        fix = f"restart the worker, with a larger {_ROOM}"
        raise AdapterRefused(f"its rank is {rank}, and the engine has room for {room}", fix)
    room_for(rank)
    require_fit(folder, base)
    return rank


def _not_added(version: _Version, refused: AdapterRefused) -> EngineRefused:
    return EngineRefused(f"the adapter {version.name} cannot be loaded: {refused}; {refused.fix}")


def _refuse(version: _Version, reason: str) -> None:
    version.refused = reason
    log.error(
        f"The adapter {version.name} could not be loaded: {reason}. Rejecting its jobs.",
        action="adapter-refused",
        adapter=version.name,
        why=reason,
    )


def _paths(folders: Mapping[str, str]) -> dict[str, Path]:
    return {name: expanded(folder) for name, folder in folders.items()}
