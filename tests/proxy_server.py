"""A real HTTP proxy: Debian's tinyproxy on a free loopback port, with a user and a password."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Self

from telemetry.clock import Deadline, SystemClock
from tests.debian_package import unpacked

_START_SECONDS = 20.0


class ProxyServer:
    """A context manager of a proxy. `user:password` are its credentials."""

    user, password = "fleet", "Pr0xy-s3cret"

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

    @property
    def asked(self) -> list[str]:
        """The request lines that the proxy has read, in order."""
        return re.findall(r"Request \(file descriptor \d+\): (.*) HTTP/1", self._log.read_text())

    def start(self) -> None:
        """Start the proxy, and return when it accepts connections."""
        lines = [
            f"Port {self.port}", "Listen 127.0.0.1", "Timeout 60", "Allow 127.0.0.1", "LogLevel Connect",
            f'LogFile "{self._log}"', f"BasicAuth {self.user} {self.password}",
        ]  # fmt: skip
        (self._folder / "tinyproxy.conf").write_text("\n".join(lines) + "\n")
        program = shutil.which("tinyproxy") or unpacked("tinyproxy-bin") / "usr" / "bin" / "tinyproxy"
        self._process = subprocess.Popen(
            [program, "-d", "-c", self._folder / "tinyproxy.conf"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = Deadline.after(self._clock, _START_SECONDS)
        while not self._accepts():
            assert not deadline.passed, "tinyproxy did not start"
            self._clock.sleep(0.02)

    def kill(self) -> None:
        """Send SIGKILL, as when a machine dies."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def _log(self) -> Path:
        return self._folder / "tinyproxy.log"

    def _accepts(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False
