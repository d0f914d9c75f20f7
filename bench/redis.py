"""A Redis for a bench, on a free loopback port and without files."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.fleet import wait_for
from cli.devkit.kafka.jars import program

START_SECONDS = 30.0


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def listens(port: int) -> bool:
    """True if a server accepts connections on a loopback port."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    """Yield the URL of a Redis, which is killed at the end."""
    port = free_port()
    command = (program("redis-server", "redis-server"), "--port", str(port), "--save", "", "--dir", str(folder))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: listens(port), START_SECONDS)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.kill()
