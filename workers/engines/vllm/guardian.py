"""The guardian ends the engine's processes when their worker ends.

vLLM's processes do not notice that SIGKILL ended their worker: they live on for minutes and keep the GPU's memory. A
guardian is a process of some 10 MB that waits for the worker's end and then kills the engine's processes.

The guardian knows an engine process by a *mark*, a random word that the worker puts into the environment while it
starts the engine (`marked_environment`). Children and their children inherit the mark, and keep it when a parent dies.
The mark's variable is `VLLM_PROCESS_NAME_PREFIX`. vLLM's processes write their title over the memory where `/proc`
shows the environment, and the title begins with that variable. Three other ways to find or end the processes do not
work. A list of pids misses a process that started a moment ago. A process group would have to be made by vLLM.
PR_SET_PDEATHSIG depends on the thread that started the engine, not on the worker.

The guardian also removes the folder of the engine's sockets. The folder's path is short even if the worker's TMPDIR is
long, since a socket's path has at most 107 characters.

Run as a program, `guardian.py WORKER_PID`, this file is the guardian itself and imports only the standard library. The
guardian reads mark and folder from standard input, since a mark on the command line would mark the guardian too.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

MARK_VARIABLE = "VLLM_PROCESS_NAME_PREFIX"
SOCKETS_VARIABLE = "VLLM_RPC_BASE_PATH"
LONGEST_BASE = 107 - 27 - 36
"""Longest path of the base folder: a socket's path has at most 107 characters (unix(7)). The folder's name and its two
slashes take up to 27 of them, and the UUID that vLLM appends takes 36."""
POLL_SECONDS = 1.0
"""Longest delay in noticing the worker's end if a fork of the worker still holds the pipe open."""
SWEEP_SECONDS = 0.1
CLEAN_SWEEPS = 5
"""The search ends after this many sweeps that find no marked process.

One sweep is too few, because a dying process may still start a new process.
"""


class Guardian:
    """Watches over the processes of one engine. `start` it before the engine, `close` it after."""

    def __init__(self) -> None:
        self.mark = f"postback-{os.getpid()}-{os.urandom(8).hex()}"
        self.folder = ""
        """The folder of the engine's sockets, from `start` to `close`."""
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1

    @property
    def pid(self) -> int | None:
        """The pid of the guardian's process; None before `start` and after `close`."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start watching.

        The guardian has its own session, so that signals to the worker's process group do not reach the guardian.
        """
        import subprocess  # imported here, so that the guardian's process stays small
        import tempfile

        self.folder = tempfile.mkdtemp(prefix=f"postback-{os.getpid()}-", dir=_short_base(tempfile.gettempdir()))
        read, self._pipe = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(os.getpid())],
                stdin=read,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(read)
        os.write(self._pipe, os.fsencode(f"{self.mark}\n{self.folder}\n"))

    @contextlib.contextmanager
    def marked_environment(self, **variables: str) -> Iterator[None]:
        """Mark processes that start during the block as the engine's, and set `variables` in their environment."""
        variables |= {MARK_VARIABLE: self.mark, SOCKETS_VARIABLE: self.folder}
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def end_engine(self) -> None:
        """End the engine's processes now; blocks for about half a second."""
        end_marked(self.mark)

    def close(self) -> None:
        """Make the guardian end the engine's last processes, remove the folder, and end itself. Blocks until then."""
        if self._process is None:
            return
        process, self._process = self._process, None
        os.close(self._pipe)
        process.wait()


def marked(mark: str) -> list[int]:
    """Return the pids of all marked processes except this process and multiprocessing's resource trackers.

    Resource trackers clean up shared memory after the other processes, and then end by themselves.
    """
    if not os.path.isdir("/proc/self"):  # noqa: PTH112 - the guardian imports little
        return []  # this is not Linux, so only vLLM's own shutdown ends vLLM's processes
    word, found = mark.encode(), list[int]()
    for entry in os.listdir("/proc"):  # noqa: PTH208 - the guardian imports little, and `pathlib` needs a stat for each
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        command, environment = _read(f"/proc/{entry}/cmdline"), _read(f"/proc/{entry}/environ")
        is_tracker = b"resource_tracker" in command
        if not is_tracker and (word in command or word in environment) and _is_alive(entry):
            found.append(int(entry))
    return found


def end_marked(mark: str) -> None:
    """SIGKILL every marked process, and every process that a marked process starts meanwhile."""
    clean = 0
    while clean < CLEAN_SWEEPS:
        pids = marked(mark)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        clean = 0 if pids else clean + 1
        select.select([], [], [], SWEEP_SECONDS)


def _short_base(usual: str) -> str:
    """Return the folder `usual` if its path is short enough for sockets, else another folder for temporary files."""
    for base in (usual, "/tmp", "/var/tmp", "/dev/shm"):  # noqa: S108 - a private folder is made in it
        if len(base) <= LONGEST_BASE and os.access(base, os.W_OK | os.X_OK):
            return base
    return usual


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - the guardian imports little
            return file.read()
    except OSError:
        return b""  # the process ended, or belongs to another user


def _is_alive(pid: str) -> bool:
    """True if the process runs. A killed process is still listed until its parent reaps it."""
    state = _read(f"/proc/{pid}/stat").rpartition(b") ")[2][:1]
    return state not in (b"", b"Z", b"X")


def _wait_for_the_end_of(worker: int) -> None:
    """Return when the worker is gone or has closed the pipe.

    A fork of the worker may hold the pipe open, so the parent's pid is checked too.
    """
    while os.getppid() == worker:
        readable, _, _ = select.select([0], [], [], POLL_SECONDS)
        if readable and not os.read(0, 1):
            return


def main() -> None:
    """Watch the worker, then end the marked processes and remove their folder."""
    worker = int(sys.argv[1])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # one read gets both lines, as the worker writes them at once
    said = os.fsdecode(os.read(0, select.PIPE_BUF)).splitlines()
    _wait_for_the_end_of(worker)
    if len(said) == 2:
        import shutil  # the import comes only now, so that the guardian is small while it waits

        mark, folder = said
        end_marked(mark)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
