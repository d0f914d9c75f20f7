"""The output of vLLM's own processes, as lines of the worker's log.

A process that vLLM spawns imports the worker's main module before vLLM, and so calls `begin`. From then on its standard
output and standard error go into a named pipe, which the worker reads. Python's loggers write ECS JSON there; C++
libraries, crashes and `print` write plain lines. The worker logs each line, so no line is lost if a process dies.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from telemetry import logs
from workers.engines.vllm.guardian import SOCKETS_VARIABLE

PIPE = "log"
"""The pipe's name in the folder of the engine's sockets."""
LONGEST_BYTES = 65_536
"""Longer plain lines are logged in parts."""
CLOSE_SECONDS = 2.0
"""Seconds to wait for the last lines if a process outside the engine holds the pipe open."""

_LEVELS = {
    name: logging.getLevelNamesMapping()[name.upper()] for name in ("debug", "info", "warning", "error", "critical")
}
"""The levels that structlog writes. Libraries may register further levels, at which structlog raises KeyError."""
_KEPT = {"process.pid": int, "error.type": str, "error.message": str, "error.stack_trace": str}


def begin() -> None:
    """If vLLM spawned this process, send the process's output to the worker. Other processes stay as they are."""
    folder = os.environ.get(SOCKETS_VARIABLE)
    if folder is None:
        return
    pipe = os.open(Path(folder) / PIPE, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(pipe, output)
    os.close(pipe)
    logs.configure("worker", level="WARNING")


@contextmanager
def shutdown_unlogged() -> Iterator[None]:
    """Log nothing of vLLM during the block, because vLLM logs its own shutdown as a failure.

    The logs of other vLLM engines in this process are off too.
    """
    logger = logging.getLogger("vllm")
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(logging.WARNING)


class ProcessLog:
    """Logs the lines of an engine's processes. `start` it before the engine, `close` it after."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._own_end = -1

    def start(self, folder: str) -> None:
        """Make the pipe in this folder and read it on a thread, so that a busy event loop does not block the engine."""
        path = Path(folder) / PIPE
        os.mkfifo(path, 0o600)
        reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without O_NONBLOCK, `open` would wait for a writer
        self._own_end = os.open(path, os.O_WRONLY)  # keeps the pipe open while no process of vLLM runs
        os.set_blocking(reading, True)
        self._thread = threading.Thread(
            target=log_lines, args=(os.fdopen(reading, "rb"),), name="vllm-log", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Log the last lines. Blocks until the engine's processes have ended, at most CLOSE_SECONDS."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        os.close(self._own_end)
        thread.join(CLOSE_SECONDS)


def log_lines(stream: BinaryIO) -> None:
    """Log each line of a stream until its end, and close it."""
    with stream:
        while line := stream.readline(LONGEST_BYTES):
            _log(line.decode(errors="replace").strip())


def _log(text: str) -> None:
    line = _ecs_line(text)
    if line is not None:
        kept = {name: line[name] for name, kind in _KEPT.items() if type(line.get(name)) is kind}
        logs.get_logger(line["log.logger"]).log(_LEVELS[line["log.level"]], line["message"], **kept)
    elif text:
        logging.getLogger("vllm_process").warning("%s", text)


def _ecs_line(text: str) -> dict[str, Any] | None:
    """Return the fields of a line that a logger of `begin`'s process wrote; None for a plain line."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or "ecs.version" not in line:
        return None
    if not all(isinstance(line.get(name), str) for name in ("log.level", "log.logger", "message")):
        return None
    return line if line["log.level"] in _LEVELS else None
