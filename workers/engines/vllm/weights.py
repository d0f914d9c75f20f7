"""New weights for a running engine: another folder of the same model, for example after more training.

vLLM 0.32 loads new values into the tensors of the running model, and keeps its tokenizer, template and configuration. A
tensor that the new folder lacks only makes a log line there. So both folders are compared before the engine pauses.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from telemetry.logs import get_logger
from workers.engines.base import EngineRefused, EngineUnavailable
from workers.engines.vllm.adapters import Adapters
from workers.engines.vllm.guardian import Guardian

LOAD_SECONDS: Final = 600.0
"""Seconds for the weights and the adapters: vLLM's own limit for its start (VLLM_ENGINE_READY_TIMEOUT_S)."""

_TEXTS: Final = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_INDEX: Final = ".safetensors.index.json"
_MAY_DIFFER: Final = ("_name_or_path", "transformers_version")
_MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of the safetensors format."""
_LENGTH_BYTES: Final = 8

DEATH_LOOK_SECONDS: Final = 0.5

log = get_logger()

Tensor = tuple[str, tuple[int, ...]]
"""The type and the shape of a tensor."""


def require_same_model(old: Path, new: Path) -> None:
    """Raise EngineRefused, with the reason, unless two folders differ only in the values of their tensors. Blocks."""
    try:
        _compare(old, new)
    except OSError as error:
        raise EngineRefused(f"a model's folder cannot be read ({error.strerror})") from None


def _compare(old: Path, new: Path) -> None:
    for folder in (old, new):
        if not folder.is_dir():
            raise EngineRefused("weights change without a restart only from a folder to a folder")
    texts, tensors = (dict(_texts(old)), dict(_texts(new))), (dict(_tensors(old)), dict(_tensors(new)))
    for name in sorted({*texts[0], *texts[1]}):
        if texts[0].get(name) != texts[1].get(name):
            raise EngineRefused(f"{name} of the new folder differs, and only weights change without a restart")
    for name in sorted({*tensors[0], *tensors[1]}):
        if tensors[0].get(name) != tensors[1].get(name):
            raise EngineRefused(f"the tensor {name} has another type or shape in the new folder, or is missing there")


async def change_weights(
    llm: Any, old: Path, new: Path, adapters: Adapters, guardian: Guardian, asking_health: asyncio.Lock
) -> None:
    """Load the weights of the folder `new` once the running requests have ended; others wait in vLLM.

    `asking_health` is held while vLLM loads, since it answers no health call then. Raises EngineRefused if the folders
    differ in more than weights. Raises EngineUnavailable if vLLM failed: its weights are unknown, so its processes are
    killed.
    """
    await asyncio.to_thread(require_same_model, old, new)
    await asyncio.to_thread(adapters.require_folders)
    log.info("The engine gets new weights; running requests end first, and others wait.", action="engine-weights")
    try:
        await _called(llm, llm.pause_generation(mode="wait"))  # clears the prefix cache too
        async with asking_health:
            await _exchange(llm, new, adapters, guardian)
    except EngineUnavailable:
        raise
    except Exception as error:
        raise EngineUnavailable("vLLM's process ended before it had the new weights") from error
    finally:
        with suppress(Exception):  # a dead engine is loaded again
            await _called(llm, llm.resume_generation())


async def _called(llm: Any, call: Coroutine[Any, Any, None]) -> None:
    """Await a call of the engine. vLLM 0.32 never answers a call whose engine dies, so this function raises then."""
    task = asyncio.ensure_future(call)
    try:
        while not task.done():
            if llm.errored:
                raise EngineUnavailable("vLLM's process ended before it had the new weights")
            await asyncio.wait({task}, timeout=DEATH_LOOK_SECONDS)
        await task
    finally:
        task.cancel()


async def _exchange(llm: Any, folder: Path, adapters: Adapters, guardian: Guardian) -> None:
    try:
        async with asyncio.timeout(LOAD_SECONDS):
            await _called(llm, load_weights(llm, folder))
            await _called(llm, adapters.add(llm))
    except BaseException as error:
        log.error(
            "The engine failed at new weights; killing its processes, and loading the former model again.",
            action="engine-weights-failed",
            error=type(error).__name__,
        )
        await asyncio.to_thread(guardian.end_engine)
        if isinstance(error, Exception):
            raise EngineUnavailable("vLLM failed at the new weights, and the former model is loaded again") from error
        raise


async def load_weights(llm: Any, folder: Path) -> None:
    """Load the folder's weights into the paused engine. vLLM answers no other call meanwhile. Raises vLLM's errors."""
    await llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})


def _texts(folder: Path) -> Iterator[tuple[str, object]]:
    """Yield the content of each file of configuration, tokenizer and template."""
    for path in folder.iterdir():
        if path.suffix in _TEXTS and not path.name.endswith(_INDEX):
            yield path.name, _read(path)


def _read(path: Path) -> object:
    try:
        content = path.read_bytes()
        parsed = json.loads(content) if path.suffix == ".json" else content
    except (OSError, ValueError, RecursionError):
        raise EngineRefused(f"{path.name} cannot be read") from None
    if isinstance(parsed, dict):
        return {name: value for name, value in parsed.items() if name not in _MAY_DIFFER}
    return parsed


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that the headers of a folder's safetensors files list."""
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
            if length > _MAX_HEADER_BYTES:
                raise ValueError
            header = json.loads(file.read(length))
        size = path.stat().st_size - _LENGTH_BYTES - length
        tensors = {name: each for name, each in header.items() if name != "__metadata__"}
        if max((each["data_offsets"][1] for each in tensors.values()), default=0) != size:
            raise ValueError
        return {name: (str(each["dtype"]), tuple(map(int, each["shape"]))) for name, each in tensors.items()}
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError):
        raise EngineRefused(f"{path.name} is no safetensors file, or is not complete") from None
