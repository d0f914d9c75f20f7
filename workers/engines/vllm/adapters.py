"""LoRA adapters of the settings: each is loaded or refused by name at the start, and a job never loads an adapter.

vLLM loads an adapter at its first request, and an adapter without a folder then ends the engine with all requests in
flight. So the engine adds each adapter while it loads, and keeps all of them in memory: a folder that vanishes later
is not read again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from telemetry.logs import get_logger
from workers.engines.base import EngineRefused, RequestRejected
from workers.engines.vllm.loading import short

MOST_IN_A_BATCH: Final = 8
"""Adapters that one batch may use; each takes memory of the GPU.

Requests for further adapters wait for the next batch.
"""
CONFIG: Final = "adapter_config.json"
MAX_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for `max_lora_rank`."""
_MAX_CONFIG_BYTES: Final = 1024 * 1024

log = get_logger()


class AdapterRefused(Exception):  # noqa: N818 - named after the event
    """An adapter cannot be used. The text gives the reason, without the adapter's path."""


class Adapters:
    """The adapters of one engine. `folders` has the folder of each name."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        self._folders = {name: Path(folder).expanduser() for name, folder in folders.items()}
        self._numbers = {name: number for number, name in enumerate(folders, 1)}
        self._refused: dict[str, str] = {}

    def arguments(self) -> dict[str, Any]:
        """Read the adapters' configurations, and return vLLM's arguments for the adapters. Blocks.

        Unusable adapters are refused by name.
        """
        self._refused = {}
        ranks = []
        for name, folder in self._folders.items():
            try:
                ranks.append(_room_for(rank_of(folder)))
            except AdapterRefused as refused:
                self._refuse(name, str(refused))
        if not ranks:
            return {"enable_lora": False}
        return {
            "enable_lora": True,
            "max_lora_rank": max(ranks),
            "max_loras": min(len(ranks), MOST_IN_A_BATCH),
            "max_cpu_loras": len(ranks),  # an evicted adapter would be read from its folder again
        }

    def require_folders(self) -> None:
        """Raise EngineRefused if an adapter in use has lost its folder: new weights need it once more. Blocks."""
        for name, folder in self._folders.items():
            if name not in self._refused and not folder.is_dir():
                raise EngineRefused(f"the folder of the adapter {name} is gone, and new weights need it once more")

    async def add(self, llm: Any) -> None:
        """Load the adapters into the engine, and note each adapter that the engine refuses.

        Raises EngineRefused, with the adapter's name, if the engine died while loading the adapter.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        for name in [name for name in self._folders if name not in self._refused]:
            try:
                await llm.add_lora(self._request(name))
            except EngineDeadError as error:
                raise EngineRefused(f"the engine died while it loaded the adapter {name}") from error
            except Exception as error:  # vLLM's process sends the text of any error
                self._refuse(name, short(str(error).replace(str(self._folders[name]), name)) or type(error).__name__)

    def requested(self, name: str) -> Any:
        """Return the adapter as vLLM's `LoRARequest`. Raises RequestRejected for an unknown or refused adapter."""
        if name not in self._folders:
            raise RequestRejected("adapter", "this engine has no adapter of this name")
        if name in self._refused:
            raise RequestRejected("adapter", f"this adapter could not be loaded: {self._refused[name]}")
        return self._request(name)

    def _request(self, name: str) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest(name, self._numbers[name], str(self._folders[name]))

    def _refuse(self, name: str, reason: str) -> None:
        self._refused[name] = reason
        log.error(
            f"The adapter {name} could not be loaded: {reason}. Rejecting its jobs.",
            action="adapter-refused",
            adapter=name,
            why=reason,
        )


def rank_of(folder: Path) -> int:
    """Return the largest rank in an adapter's folder, at least 1. Raises AdapterRefused."""
    if not folder.is_dir():
        raise AdapterRefused("its folder does not exist")
    try:
        with (folder / CONFIG).open("rb") as file:
            content = file.read(_MAX_CONFIG_BYTES + 1)
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


def _room_for(rank: int) -> int:
    """Return the least value of `MAX_RANKS` that is not below the rank. Raises AdapterRefused."""
    for most in MAX_RANKS:
        if rank <= most:
            return most
    raise AdapterRefused(f"its rank is {rank}, and vLLM takes at most {MAX_RANKS[-1]}")
