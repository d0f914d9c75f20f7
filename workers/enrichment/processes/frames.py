"""Reads tasks from the worker and writes answers, in an enrichment process. `child` has the worker's side of the pipes.

A task is the length of its head (4 bytes), the length of its body (4 bytes), the head as JSON, and the body. An answer
is its length (4 bytes) and JSON. Before the first task, the process sends one answer to show that it is ready.
"""

from __future__ import annotations

import json
from typing import Any, BinaryIO


def receive(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Read the next task, and return its head and body; None at the end of the input."""
    sizes = stream.read(8)
    if len(sizes) < 8:
        return None
    head = stream.read(int.from_bytes(sizes[:4]))
    body = stream.read(int.from_bytes(sizes[4:]))
    return json.loads(head), body


def send(stream: BinaryIO, answer: dict[str, Any]) -> None:
    """Write one answer. A lone surrogate, which UTF-8 cannot encode, becomes a question mark."""
    data = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")
    stream.write(len(data).to_bytes(4) + data)
    stream.flush()
