"""Files of the safetensors format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def safetensors(tensors: Mapping[str, tuple[str, Sequence[float]]], fill: bytes = b"\0") -> bytes:
    """A file of the format, with 32 bytes for each tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for number, (name, (kind, shape)) in enumerate(tensors.items()):
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [32 * number, 32 * number + 32]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + fill * 32 * len(tensors)
