"""A small HTTP/1.1 client on an event loop: it needs less CPU time than the servers that it measures."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import NamedTuple

_LENGTH = b"content-length: "

Make = Callable[[], bytes]
"""Returns the bytes of the next request."""


class HttpAnswer(NamedTuple):
    """A response."""

    status: int
    body: bytes


class LoadConnection(asyncio.Protocol):
    """One connection, with one request at a time. Responses must state their length."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._parts = b""
        self._answered: asyncio.Future[HttpAnswer] | None = None

    @classmethod
    async def open(cls, port: int, tls: ssl.SSLContext) -> LoadConnection:
        """Connect to a port of this machine."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, "127.0.0.1", port, ssl=tls)
        return connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Resolve the request's future once its response is whole."""
        self._parts += data
        head, end, body = self._parts.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head[head.index(_LENGTH) + len(_LENGTH) :].split(b"\r\n", 1)[0])
        if len(body) >= length and self._answered is not None:
            self._parts, answered, self._answered = b"", self._answered, None
            answered.set_result(HttpAnswer(int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the running request."""
        if self._answered is not None:
            self._answered.set_exception(exc or ConnectionResetError("the server ended the connection"))

    async def ask(self, request: bytes) -> HttpAnswer:
        """Send a request, and wait for its response."""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        """End the connection."""
        self._transport.close()


async def rate(port: int, tls: ssl.SSLContext, make: Make, status: int, connections: int, seconds: float) -> float:
    """Send requests on all connections for a time; return the responses per second. Raises RuntimeError."""
    open_ones = [await LoadConnection.open(port, tls) for _ in range(connections)]
    began, count = time.monotonic(), 0

    async def send(connection: LoadConnection) -> None:
        nonlocal count
        while time.monotonic() - began < seconds:
            answer = await connection.ask(make())
            if answer.status != status:
                raise RuntimeError(f"status {answer.status}: {answer.body[:300]!r}")
            count += 1

    await asyncio.gather(*map(send, open_ones))
    took = time.monotonic() - began
    for connection in open_ones:
        connection.close()
    return count / took


def request(method: str, path: str, key: str, body: bytes = b"", **fields: str) -> bytes:
    """Return the bytes of a request with a key."""
    named = {"host": "127.0.0.1", "authorization": f"Bearer {key}", "content-length": str(len(body)), **fields}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in named.items()]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body
