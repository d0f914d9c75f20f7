"""A real HTTP proxy: Debian's tinyproxy on a free loopback port, with a user and a password."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.debian_package import unpacked
from tests.loopback_server import LoopbackServer


class ProxyServer(LoopbackServer):
    """A context manager of a proxy. `user:password` are its credentials."""

    user, password = "fleet", "Pr0xy-s3cret"

    @property
    def asked(self) -> list[str]:
        """The request lines that the proxy has read, in order."""
        return re.findall(r"Request \(file descriptor \d+\): (.*) HTTP/1", self._log.read_text())

    def command(self) -> Sequence[str | Path]:
        """The command line, with a new configuration file."""
        lines = [
            f"Port {self.port}", "Listen 127.0.0.1", "Timeout 60", "Allow 127.0.0.1", "LogLevel Connect",
            f'LogFile "{self._log}"', f"BasicAuth {self.user} {self.password}",
        ]  # fmt: skip
        (self._folder / "tinyproxy.conf").write_text("\n".join(lines) + "\n")
        program = shutil.which("tinyproxy") or unpacked("tinyproxy-bin") / "usr" / "bin" / "tinyproxy"
        return [program, "-d", "-c", self._folder / "tinyproxy.conf"]

    @property
    def _log(self) -> Path:
        return self._folder / "tinyproxy.log"
