"""Processes that end with this one: the kernel kills them if the test run is killed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.product import eventually

WAIT_SECONDS = 600.0
"""The longest wait for a condition that takes seconds on a quiet machine."""


class Programs:
    """Named processes, each with a log file in the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> None:
        with self._log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command], stdout=log, stderr=subprocess.STDOUT, env=env
            )

    def wait_until_alive_and(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `condition` is true; fail if it is not in time, or if one of the processes ends."""

        def met() -> bool:
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            assert not ended, f"ended: {ended}\n{self.last_lines()}"
            return condition()

        eventually(met, seconds, lambda: f"{what}\n{self.last_lines()}")

    def kill(self) -> None:
        """Kill all processes: their data is of no further use."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()

    def last_lines(self) -> str:
        """The end of each log, for the message of a failed test."""
        logs = {name: self._log(name).read_text(errors="replace").splitlines()[-8:] for name in self._processes}
        return "\n".join(f"--- {name}\n" + "\n".join(line[:400] for line in lines) for name, lines in logs.items())

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"
