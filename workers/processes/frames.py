"""The frames of a process's pipes: tasks to the process, and its answers.

A task is the length of its head (4 bytes), the length of its body (4 bytes), the head as JSON, and the body. An answer
is its length (4 bytes) and JSON. Before the first task, the process sends one answer to show that it is ready.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any, Final

ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Maximum size of an answer."""


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """Read the next task, and return its head and body; None at the end of the input."""
    sizes = stream.read(8)
    if len(sizes) < 8:
        return None
    head = stream.read(int.from_bytes(sizes[:4]))
    body = stream.read(int.from_bytes(sizes[4:]))
    return json.loads(head), body


def send(stream: IO[bytes], answer: dict[str, Any]) -> None:
    """Write one answer. A lone surrogate, which UTF-8 cannot encode, becomes a question mark."""
    data = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")
    stream.write(len(data).to_bytes(4) + data)
    stream.flush()


def task_head(task: Mapping[str, Any], body: bytes) -> bytes:
    """Return the bytes before a task's body."""
    head = json.dumps(task).encode()
    return len(head).to_bytes(4) + len(body).to_bytes(4) + head


def ask(to_process: IO[bytes], from_process: IO[bytes], task: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """Send a task, and wait for the answer. Raises OSError, EOFError and ValueError."""
    to_process.write(task_head(task, body))
    to_process.write(body)
    to_process.flush()
    return read_answer(from_process)


def read_answer(from_process: IO[bytes]) -> dict[str, Any]:
    """Wait for the next answer. Raises OSError, EOFError if the process has ended, and ValueError for other bytes."""
    size = int.from_bytes(from_process.read(4))
    if size == 0:
        raise EOFError
    return answer_of(from_process.read(size) if size <= ANSWER_BYTES else b"")


def answer_of(data: bytes) -> dict[str, Any]:
    """Parse an answer. Raises ValueError."""
    try:
        answer = json.loads(data)
    except RecursionError:
        raise ValueError("an answer is too deep") from None
    if not isinstance(answer, dict):
        raise ValueError("an answer is an object")
    return answer
