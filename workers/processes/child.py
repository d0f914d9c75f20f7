"""The worker's side of an enrichment process: starts, asks and kills the process. `frames` is the process's side."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from functools import lru_cache
from typing import Any, cast

from telemetry.logs import get_logger
from workers.processes.confinement import Fence
from workers.processes.frames import ANSWER_BYTES, answer_of, task_head

log = get_logger()

INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""The environment variables that every process inherits. All other variables of the worker may hold secrets."""

_PIECE_BYTES = 256 * 1024
"""Bytes of a page that are handed to a process at once."""
_REAP_SECONDS = 0.01
"""Pause between two checks whether a killed program has ended."""


class ChildLost(Exception):  # noqa: N818 - named after the event
    """The process ended without an answer."""


@lru_cache(maxsize=1)
def warn_of_missing(missing: tuple[str, ...]) -> None:
    """Log the missing fences. `lru_cache` drops repeated calls, so that equal fences are logged only once."""
    log.warning(
        "The kernel cannot fully confine the processes that read pages; going on with the fences that it has.",
        action="reader-not-confined",
        missing=" ".join(missing),
    )


def note_missing(missing: object) -> None:
    """Log the fences that a child lacks. This happens once per worker, since all children run on the same kernel."""
    known = [str(fence) for fence in Fence if isinstance(missing, list) and fence in missing]
    if known:
        warn_of_missing(tuple(known))


class Child:
    """One child process. The child ends when its input closes, so it does not outlive the worker."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._input = cast("asyncio.StreamWriter", process.stdin)
        self._output = cast("asyncio.StreamReader", process.stdout)
        self.greeting: dict[str, Any] = {}
        """The child's first answer, which the child sent when it was ready."""

    @property
    def alive(self) -> bool:
        """False if the process is known to have ended."""
        return self._process.returncode is None

    @classmethod
    async def start(cls, module: str, *arguments: str) -> Child:
        """Start a process that runs this module, and wait until it is ready. Raises ChildLost and OSError."""
        passed = {name: os.environ[name] for name in INHERITED if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", module, *arguments,
            stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=passed, start_new_session=True,
        )  # fmt: skip
        child = cls(process)
        try:
            child.greeting = await child._answer()
            note_missing(child.greeting.get("missing", []))
        except BaseException:
            await child.kill()
            raise
        return child

    async def ask(self, task: dict[str, Any], body: bytes) -> dict[str, Any]:
        """Send a task and its bytes, and read the answer. Raises ChildLost and OSError.

        If the call is cancelled, the answer may still arrive, so the caller must then kill the process.
        """
        self._input.write(task_head(task, body))
        for start in range(0, len(body), _PIECE_BYTES):  # in pieces, so that no second copy of the body is in memory
            self._input.write(body[start : start + _PIECE_BYTES])
            await self._input.drain()
        return await self._answer()

    async def kill(self) -> None:
        """End the process and the programs that it has started, and wait until it is gone."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._input.close()
        await self._process.wait()
        await _reap(self._process.pid)

    async def _answer(self) -> dict[str, Any]:
        try:
            size = int.from_bytes(await self._output.readexactly(4))
            return answer_of(await self._output.readexactly(size) if size <= ANSWER_BYTES else b"")
        except (asyncio.IncompleteReadError, ValueError):
            raise ChildLost from None


async def _reap(group: int) -> None:
    """Wait for the killed programs that a process of this process group had started.

    The programs become children of the container's first process, which is the worker. Without this wait, the programs
    would stay in the table of processes as zombies.
    """
    with contextlib.suppress(ChildProcessError):  # no child of this group is left
        while True:
            if os.waitpid(-group, os.WNOHANG)[0] == 0:  # noqa: ASYNC222 - WNOHANG does not block
                await asyncio.sleep(_REAP_SECONDS)
