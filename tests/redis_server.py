"""Our own Redis: Debian's `redis-server`, installed like the embedded Kafka's programs if it is missing."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from cli.devkit.kafka.jars import program
from tests.loopback_server import LoopbackServer


class RedisServer(LoopbackServer):
    """A context manager of a Redis on a free loopback port. This Redis keeps no file, so a kill loses all data."""

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> Sequence[str | Path]:
        """The command line of a server without files."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        return [program("redis-server", "redis-server"), *options, "--dir", self._folder]

    def greets(self, connection: socket.socket) -> bool:
        """True if Redis answers a ping."""
        connection.sendall(b"PING\r\n")
        return connection.recv(7) == b"+PONG\r\n"
