"""Changes of a running engine's settings: its weights or its adapters; everything else needs a restart.

New weights are another folder of the same model, for example after more training.

vLLM 0.32 loads new values into the tensors of the running model, and keeps its tokenizer, template and configuration.
If the new folder lacks a tensor, vLLM only logs a line. So both folders are compared before the engine pauses.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

from telemetry.logs import get_logger
from workers.engines.base import EngineAway, EngineRefused, EngineUnavailable
from workers.engines.settings import EngineSection
from workers.engines.vllm.adapters import Adapters, tensors_of
from workers.engines.vllm.guardian import Guardian
from workers.engines.vllm.loading import while_alive
from workers.engines.vllm.settings import VllmSettings

LOAD_SECONDS: Final = 600.0
"""Seconds in which vLLM must load the weights and the adapters.

The number is vLLM's own limit for its start (VLLM_ENGINE_READY_TIMEOUT_S).
"""

_TEXTS: Final = (".json", ".jinja", ".model", ".txt", ".tiktoken")
_INDEX: Final = ".safetensors.index.json"
_MAY_DIFFER: Final = ("_name_or_path", "transformers_version")

log = get_logger()


async def change(
    llm: Any,
    old: VllmSettings,
    section: EngineSection,
    adapters: Adapters,
    guardian: Guardian,
    asking_health: asyncio.Lock,
) -> VllmSettings:
    """Give the engine other weights or adapters, and return its new settings. `llm` is None while the engine is away.

    Raises EngineRefused if the change needs a restart or an adapter cannot be loaded, EngineAway if the engine is away,
    and EngineUnavailable if the engine failed.
    """
    new = cast("VllmSettings", section)
    model = {"model": old.model, "revision": old.revision}
    if new.model is None or new.model_copy(update={**model, "adapters": old.adapters}) != old:
        raise EngineRefused("settings besides the model and its adapters have changed")
    is_same_model = new.model_copy(update=model) == new
    if not is_same_model and new.adapters != old.adapters:
        # Refuse to change both, because jobs that wait in vLLM would get the former adapters with the new weights.
        raise EngineRefused("the weights and the adapters have changed at once; save one change, then the other")
    if llm is None:
        raise EngineAway("the engine is away")
    if is_same_model:
        await adapters.change(llm, new)
    else:
        await change_weights(llm, Path(str(old.model)), Path(new.model), adapters, guardian, asking_health)
    return new


def require_same_model(old: Path, new: Path) -> None:
    """Raise EngineRefused, with the reason, unless two folders differ only in the values of their tensors. Blocks."""
    try:
        if not (old.is_dir() and new.is_dir()):
            raise EngineRefused("weights change without a restart only from a folder to a folder")
        for read, difference in (
            (_texts, "{} of the new folder differs, and only weights change without a restart"),
            (tensors_of, "the tensor {} has another type or shape in the new folder, or is missing there"),
        ):
            one, other = dict[str, object](read(old)), dict[str, object](read(new))
            for name in sorted({*one, *other}):
                if one.get(name) != other.get(name):
                    raise EngineRefused(difference.format(name))
    except OSError as error:
        raise EngineRefused(f"a model's folder cannot be read ({error.strerror})") from None


async def change_weights(
    llm: Any, old: Path, new: Path, adapters: Adapters, guardian: Guardian, asking_health: asyncio.Lock
) -> None:
    """Load the weights of the folder `new` once the running requests have ended; later requests wait in vLLM.

    Jobs with a removed adapter end first, because vLLM drops all adapters at new weights, and only present adapters are
    loaded again. `asking_health` is held while vLLM loads, since vLLM answers no health call meanwhile. Raises
    EngineRefused if the folders differ in more than weights. Raises EngineUnavailable if vLLM failed. The state of
    vLLM's weights is then unknown, so vLLM's processes are killed.
    """
    await asyncio.to_thread(require_same_model, old, new)
    await asyncio.to_thread(adapters.require_folders)
    await adapters.all_left()
    log.info("The engine gets new weights; running requests end first, and others wait.", action="engine-weights")
    try:
        await while_alive(llm, llm.pause_generation(mode="wait"))  # clears the prefix cache too
        async with asking_health:
            await _exchange(llm, new, adapters, guardian)
    except EngineUnavailable:
        raise
    except Exception as error:
        raise EngineUnavailable("vLLM's process ended before it had the new weights") from error
    finally:
        with suppress(Exception):  # a dead engine need not resume, because it is loaded again
            await while_alive(llm, llm.resume_generation())


async def _exchange(llm: Any, folder: Path, adapters: Adapters, guardian: Guardian) -> None:
    try:
        async with asyncio.timeout(LOAD_SECONDS):
            await while_alive(llm, load_weights(llm, folder))
            await while_alive(llm, adapters.add(llm))
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
