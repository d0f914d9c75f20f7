"""The LoRA adapters of one engine, by name: loaded at its start, and changed while it runs.

vLLM loads an adapter at the first request for it. If the folder is missing then, the engine ends with all requests in
flight. So each adapter is loaded before a job can name it, and stays in memory until its last job has ended. vLLM
therefore never reads a vanished folder again.

A changed folder makes a new version of the adapter, with a number and a vLLM name of its own. vLLM tells the requests
of a batch apart by that name, and the keys of its prefix cache contain the name. So a job uses one version, and never
the cache of another version.

vLLM 0.32 silently loads tensors that are smaller than the model's, and leaves the rest zero. So an adapter's folder is
read before vLLM gets it: its rank, and its shapes as far as the model's folder shows them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from telemetry.logs import get_logger
from workers.engines.base import EngineRefused, EngineUnavailable, RequestRejected
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
CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
MAX_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM allows for `max_lora_rank`."""
_MAX_CONFIG_BYTES: Final = 1024 * 1024
_TENSOR: Final = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_PLAIN: Final = ("F32", "F16", "BF16")
"""Types of weights whose stored shape is the shape in use; quantized weights are stored in other shapes."""

log = get_logger()


class AdapterRefused(Exception):  # noqa: N818 - named after the event
    """An adapter cannot be used. The text gives the reason, without the adapter's path; `fix` says how to mend it."""

    def __init__(self, reason: str, fix: str = "mend its folder, and save the file again") -> None:
        super().__init__(reason)
        self.fix = fix


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


# -- The folder of an adapter --
def is_folder(path: Path) -> bool:
    """True for a folder; False also for a path that the system cannot look up."""
    try:
        return path.is_dir()
    except OSError:
        return False


def rank_of(folder: Path) -> int:
    """Return the largest rank in an adapter's folder, at least 1. Raises AdapterRefused."""
    if not is_folder(folder):
        raise AdapterRefused("its folder does not exist, or may not be read")
    try:
        with open(folder / CONFIG, "rb", opener=_unblocked) as file:
            content = file.read(_MAX_CONFIG_BYTES + 1) or b""  # `read` returns None for an empty pipe
        config = json.loads(content) if len(content) <= _MAX_CONFIG_BYTES else None
    except OSError as error:
        raise AdapterRefused(f"its {CONFIG} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise AdapterRefused(f"its {CONFIG} is not JSON") from None
    if not isinstance(config, dict):
        raise AdapterRefused(f"its {CONFIG} is no JSON object of at most {_MAX_CONFIG_BYTES} bytes")
    patterns = config.get("rank_pattern") or {}
    ranks = [config.get("r"), *(patterns.values() if isinstance(patterns, dict) else [None])]
    whole = [rank for rank in ranks if isinstance(rank, int) and not isinstance(rank, bool) and rank > 0]
    if len(whole) < len(ranks):
        raise AdapterRefused(f"its {CONFIG} has an `r` or a `rank_pattern` without a rank, a number from 1 on")
    return max(whole)


def _unblocked(path: str, flags: int) -> int:
    """Open a file without blocking. Opening a named pipe that has no writer would otherwise block for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def room_for(rank: int) -> int:
    """Return the least value of `MAX_RANKS` that is not below the rank. Raises AdapterRefused."""
    for most in MAX_RANKS:
        if rank <= most:
            return most
    raise AdapterRefused(f"its rank is {rank}, and vLLM takes at most {MAX_RANKS[-1]}")


def base_tensors(model: str | None) -> Mapping[str, Tensor]:
    """Return the tensors of a model's folder; none for a model of the hub, or without safetensors files. Blocks."""
    folder = Path(model or "")
    try:
        return dict(tensors_of(folder)) if model and is_folder(folder) else {}
    except (EngineRefused, OSError):
        return {}


def require_fit(folder: Path, base: Mapping[str, Tensor]) -> None:
    """Raise AdapterRefused if a tensor's shape is not that of the same layer of the model. Blocks.

    vLLM itself checks layers that `base` lacks, layers with quantized weights, and a folder without `WEIGHTS`.
    """
    try:
        if not base or not (folder / WEIGHTS).is_file():
            return
        tensors = header_of(folder / WEIGHTS)
    except OSError as error:
        raise AdapterRefused(f"its {WEIGHTS} cannot be read: {error.strerror}") from None
    except EngineRefused as refused:
        raise AdapterRefused(f"its {refused}") from None
    for name, (_, shape) in tensors.items():
        found = _TENSOR.fullmatch(name)
        kind, whole = base.get(f"{found[1]}.weight", ("", ())) if found is not None else ("", ())
        if found is None or kind not in _PLAIN or len(whole) != 2 or len(shape) != 2:
            continue
        given, needed = (shape[1], whole[1]) if found[2] == "A" else (shape[0], whole[0])
        if given != needed:
            raise AdapterRefused(
                f"it was trained for another model: its layer {found[1]} has {given} values, "
                f"and the model's layer has {needed}"
            )


# -- The types and shapes of the tensors in a folder's safetensors files, from the files' headers alone --
_MAX_HEADER_BYTES: Final = 32 * 1024 * 1024
"""A model with 384 experts in 60 layers has a header of 21 MB: six matrices an expert, at 150 bytes each.

The format allows 100 MB, and JSON of that size may become 2.4 GB of objects.
"""
_LENGTH_BYTES: Final = 8

Tensor = tuple[str, tuple[int, ...]]
"""The type and the shape of a tensor."""


def tensors_of(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that the headers of a folder's safetensors files list. Raises EngineRefused."""
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise EngineRefused("a folder has no safetensors files, and only these change without a restart")
    for path in paths:
        yield from header_of(path).items()


def header_of(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a safetensors file. Raises EngineRefused if its header cannot be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            size = path.stat().st_size - _LENGTH_BYTES - length
            if size < 0:
                raise ValueError
            if length > _MAX_HEADER_BYTES:
                too_long = f"a header of {length} bytes, and at most {_MAX_HEADER_BYTES} are read"
                raise EngineRefused(f"{path.name} has {too_long}; save its tensors in several files")
            header = json.loads(file.read(length))
        tensors = {name: each for name, each in header.items() if name != "__metadata__"}
        if max((each["data_offsets"][1] for each in tensors.values()), default=0) != size:
            raise ValueError
        return {name: (str(each["dtype"]), tuple(map(int, each["shape"]))) for name, each in tensors.items()}
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError):
        raise EngineRefused(f"{path.name} is no safetensors file, or is not complete") from None
