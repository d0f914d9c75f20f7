"""Our own Redis: Debian's `redis-server`, installed like the embedded Kafka's programs if it is missing."""

from __future__ import annotations

import socket
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Self

from devkit.kafka.jars import program
from telemetry.clock import Deadline, SystemClock

_START_SECONDS = 20.0


class RedisServer:
    """A context manager of a Redis on a free loopback port. It keeps no file, so a kill loses all its data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clock = SystemClock()
        self._process: subprocess.Popen[bytes] | None = None
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the server, and return when it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [program("redis-server", "redis-server"), *options, "--dir", str(self._folder)], stdout=subprocess.DEVNULL
        )
        deadline = Deadline.after(self._clock, _START_SECONDS)
        while not self._answers():
            assert not deadline.passed, "redis-server did not start"
            self._clock.sleep(0.02)

    def kill(self) -> None:
        """Send SIGKILL, as when a machine dies."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False
