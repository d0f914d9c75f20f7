"""The folder of a LoRA adapter: its rank and its fit to the model, read before vLLM gets the folder.

vLLM 0.32 silently loads tensors that are smaller than the model's, and leaves the rest zero. So the shapes are compared
here, as far as the model's folder shows them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from workers.engines.base import EngineRefused

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
MAX_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM allows for `max_lora_rank`."""
_MAX_CONFIG_BYTES: Final = 1024 * 1024
_TENSOR: Final = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_PLAIN: Final = ("F32", "F16", "BF16")
"""Types of weights whose stored shape is the shape in use; quantized weights are stored in other shapes."""


class AdapterRefused(Exception):  # noqa: N818 - named after the event
    """An adapter cannot be used. The text gives the reason, without the adapter's path; `fix` says how to mend it."""

    def __init__(self, reason: str, fix: str = "mend its folder, and save the file again") -> None:
        super().__init__(reason)
        self.fix = fix


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
