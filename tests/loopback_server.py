"""A server of a Debian package on a free loopback port, as a context manager."""

from __future__ import annotations

import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Self

from telemetry.clock import Deadline, SystemClock

_START_SECONDS = 60.0


class LoopbackServer(ABC):
    """Starts a program and waits until it answers. A subclass gives the program's command line."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clock = SystemClock()
        self._process: subprocess.Popen[bytes] | None = None
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """The command line. Writes the program's files, if it needs any."""

    def answers(self) -> bool:
        """True if the program accepts connections."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return self.greets(connection)
        except OSError:
            return False

    def greets(self, connection: socket.socket) -> bool:
        """True if the program, to which this is a new connection, is ready."""
        return True

    def start(self) -> None:
        """Start the program, and wait until it answers."""
        command = self.command()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = Deadline.after(self._clock, _START_SECONDS)
        while not self.answers():
            assert not deadline.passed, f"{command[0]} did not start"
            self._clock.sleep(0.02)

    def kill(self) -> None:
        """Send SIGKILL, as when a machine dies."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
