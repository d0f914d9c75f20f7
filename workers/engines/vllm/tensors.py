"""The types and shapes of the tensors in a folder's safetensors files, from the files' headers alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from workers.engines.base import EngineRefused

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
