"""Webhook consumers that need almost no CPU time, in a separate process, so that only the sender is measured."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from typing import cast

import uvloop

from bench.fleet import wait_for

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
_ID = b"webhook-id: "
_LENGTH = b"content-length: "

Arrival = tuple[str, float]
"""A `webhook-id`, and `time.monotonic()` at the end of its request; all processes of a machine share this clock."""


class Receivers:
    """The consumers' ports, and the arrivals that the consumers' process records."""

    def __init__(self, ports: Sequence[int], link: Connection) -> None:
        self.ports = ports
        self._link = link

    def arrivals(self) -> list[Arrival]:
        """Return the arrivals since the last call."""
        self._link.send(True)
        arrived: list[Arrival] = self._link.recv()
        return arrived

    def first_arrivals(self, wanted: Collection[str], seconds: float) -> dict[str, float]:
        """Wait until each id has arrived, and return first arrivals by id. Raises RuntimeError after `seconds`."""
        arrived: dict[str, float] = {}

        def all_came() -> bool:
            for name, at in self.arrivals():
                arrived.setdefault(name, at)
            return all(name in arrived for name in wanted)

        wait_for(all_came, seconds)
        return arrived


@contextmanager
def receivers(count: int, *, hung: int = 0, note: bool = False, port: int = 0) -> Iterator[Receivers]:
    """Serve `count` ports that answer 200, followed by `hung` ports that read requests and never answer.

    `port` is the port of a sole receiver; 0 means a free one.

    With `note`, `arrivals` returns the arrival of each callback.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, count, hung, note, port), daemon=True)
    process.start()
    try:
        yield Receivers(ours.recv(), ours)
    finally:
        process.terminate()
        process.join()


@contextmanager
def refusing_port() -> Iterator[int]:
    """Yield a port without a listener, and keep other processes from getting it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def _serve(link: Connection, count: int, hung: int, note: bool, port: int) -> None:
    gc.disable()  # with many arrivals, one garbage collection takes 75 ms, in which no request is answered
    uvloop.run(_serving(link, count, hung, note, port))


async def _serving(link: Connection, count: int, hung: int, note: bool, port: int) -> None:
    loop = asyncio.get_running_loop()
    arrived: list[Arrival] = []
    kinds = [OK] * count + [b""] * hung
    servers = [
        await loop.create_server(partial(_Consumer, answer, arrived if note else None), "127.0.0.1", port)
        for answer in kinds
    ]
    link.send([server.sockets[0].getsockname()[1] for server in servers])
    while await loop.run_in_executor(None, _asked, link):
        link.send(arrived)
        arrived.clear()


def _asked(link: Connection) -> bool:
    try:
        return bool(link.recv())
    except EOFError:
        return False


class _Consumer(asyncio.Protocol):
    """One connection, with as much of HTTP/1.1 as a POST with a Content-Length needs."""

    def __init__(self, answer: bytes, arrived: list[Arrival] | None) -> None:
        self._answer = answer
        self._arrived = arrived
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The type is cast, because uvloop's transports do not derive from WriteTransport.
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n") + 4) > 3:
            head = self._buffer[:end].lower()
            whole = end + int(_value(head, _LENGTH))
            if len(self._buffer) < whole:
                return
            self._buffer = self._buffer[whole:]
            if self._arrived is not None:
                self._arrived.append((_value(head, _ID).decode(), time.monotonic()))
            self._transport.write(self._answer)


def _value(head: bytes, name: bytes) -> bytes:
    start = head.index(name) + len(name)
    return head[start : head.index(b"\r", start)]
