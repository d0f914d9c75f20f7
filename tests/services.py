"""The servers that all processes of a test run share: one Kafka and one PostgreSQL.

pytest's controller owns the servers, so that they end with it. A test process asks for a server by making a file in a
folder that all processes know; the controller starts the server once and writes its address into a second file. A run
that needs no server starts none. Topics and databases are named by test, because all tests share them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from cli.devkit.broker import Broker
from telemetry.clock import Deadline, SystemClock
from tests.postgres_server import PostgresServer

_POLL_SECONDS = 0.05
_START_SECONDS = 300.0
"""A first start may download Kafka's jars or a Debian package."""

Start = Callable[[], AbstractContextManager[str]]
"""Starts a server, and ends it with the block. The value is the server's address."""


@contextmanager
def _kafka() -> Iterator[str]:
    with Broker.start() as broker:
        yield broker.bootstrap_servers


@contextmanager
def _postgresql() -> Iterator[str]:
    with PostgresServer() as server:
        yield str(server.port)


SERVERS: Mapping[str, Start] = {"kafka": _kafka, "postgresql": _postgresql}


class Services:
    """The controller's side: a thread that starts each server when a test process asks for it."""

    def __init__(self, folder: Path, servers: Mapping[str, Start] = SERVERS) -> None:
        self.folder = folder
        self._servers = dict(servers)
        self._ended = threading.Event()
        # The thread lives as long as the servers: Linux ends a leashed server with the thread that started it.
        self._thread = threading.Thread(target=self._serve, name="services")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _serve(self) -> None:
        with ExitStack() as running:
            while not self._ended.wait(_POLL_SECONDS):
                for name in [name for name in self._servers if (self.folder / f"{name}.wanted").exists()]:
                    start = self._servers.pop(name)
                    try:
                        answer = f"address {running.enter_context(start())}"
                    except Exception as error:  # every test that asked for the server has to fail, and say why
                        answer = f"error {error!r}"
                    written = self.folder / f"{name}.new"
                    written.write_text(answer)
                    written.replace(self.folder / f"{name}.answer")


def address(folder: Path, name: str) -> str:
    """Ask the controller for a server, and return its address. Raises RuntimeError if the server did not start."""
    (folder / f"{name}.wanted").touch()
    answer = folder / f"{name}.answer"
    deadline = Deadline.after(SystemClock(), _START_SECONDS)
    while not answer.exists():
        if deadline.passed:
            raise RuntimeError(f"{name} did not start within {_START_SECONDS:.0f} s")
        deadline.clock.sleep(_POLL_SECONDS)
    kind, value = answer.read_text().split(" ", 1)
    if kind == "error":
        raise RuntimeError(f"{name} did not start: {value}")
    return value


def services_of(config: pytest.Config) -> Path | None:
    """Return the folder through which this process asks for shared servers; None without other processes."""
    given = getattr(config, "workerinput", None)
    return Path(given["services"]) if given else None
