"""One HTTP/1.1 exchange: a POST goes out on a warm or a new connection, and its answer is read.

The module uses aiohttp below its session: its pool of connections, its TLS and its parser. It leaves out features that
a callback never needs (redirects, cookies, netrc, proxies, bodies of unknown length): half of a request's cost. Nothing
here repeats a request: each call writes at most once.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from yarl import URL

from workers.egress import GuardedConnector

USER_AGENT = f"Postback/{version('postback')}"

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_read=None, sock_connect=None)
"""aiohttp's own timers stay off: one deadline covers the whole exchange, so that no two add up."""

_REMEMBERED_TARGETS = 4096


@dataclass(slots=True)
class CallbackAnswer:
    """The answer as far as it was read: a deadline may cut the exchange off at any point."""

    status: int | None = None
    """None if no status line was read."""
    retry_after: str | None = None
    excerpt: bytearray = field(default_factory=bytearray)
    """The beginning of the body, not decompressed."""


@dataclass(frozen=True, slots=True)
class _Target:
    """The parts that all requests to one URL share."""

    request: aiohttp.ClientRequest
    """The pool's key to a connection. The request itself is never sent."""
    head: str
    """The request's first lines."""


class Exchanges:
    """Sends POSTs through a connector. It belongs to the event loop that makes it, as the connector does."""

    def __init__(self, connector: GuardedConnector, response_cap_bytes: int, excerpt_bytes: int = 0) -> None:
        self._connector = connector
        self._cap = response_cap_bytes
        self._excerpt_bytes = excerpt_bytes
        self._target = lru_cache(_REMEMBERED_TARGETS)(_target)

    async def post(
        self, url: URL, body: bytes, headers: Mapping[str, str], tls: ssl.SSLContext, answer: CallbackAnswer
    ) -> None:
        """Fill in the answer. Its body is read up to the cap, and dropped except for the excerpt.

        Raises EgressRefused and aiohttp's errors: ClientError, HttpProcessingError, OSError. Raises ValueError for a
        header with a line break or a character outside ASCII.
        """
        target = self._target(url, tls)
        head = target.head + _lines(headers) + f"Content-Length: {len(body)}\r\n\r\n"
        connection = await self._connector.connect(target.request, [], _NO_TIMEOUT)
        try:
            protocol = _write(connection, head.encode("ascii"), body)
            if await self._read(protocol, answer) and _is_all_sent(connection):
                connection.release()  # into the pool, unless the answer said or showed that it will be closed
        finally:
            _drop(connection)

    async def close(self) -> None:
        """Close all connections."""
        await self._connector.close()

    async def _read(self, protocol: ResponseHandler, answer: CallbackAnswer) -> bool:
        """Read the answer. True if all of it was read, so that the connection can serve the next request."""
        message, payload = await protocol.read()  # interim responses end in `OneAnswerEach`
        answer.status = message.code
        answer.retry_after = message.headers.get("Retry-After")
        rest = self._cap
        while not payload.at_eof():
            data = await payload.readany()
            rest -= len(data)
            if (room := self._excerpt_bytes - len(answer.excerpt)) > 0:
                answer.excerpt += data[:room]
            if rest < 0:
                return False
        return True


def _target(url: URL, tls: ssl.SSLContext) -> _Target:
    """The shared parts of requests to a URL. Call it on the running loop."""
    lines = (
        f"POST {url.raw_path_qs} HTTP/1.1",
        f"Host: {url.host_port_subcomponent}",
        f"User-Agent: {USER_AGENT}",
        "Content-Type: application/json",
    )
    request = aiohttp.ClientRequest("POST", url, loop=asyncio.get_running_loop(), ssl=tls)
    return _Target(request, "".join(f"{line}\r\n" for line in lines))


def _lines(headers: Mapping[str, str]) -> str:
    """The header lines on the wire. Raises ValueError for a name or value with a line break."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a header has a line break")
    return lines


def _write(connection: Connection, head: bytes, body: bytes) -> ResponseHandler:
    """Send the request, once, and have its answer parsed."""
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None:
        raise aiohttp.ServerDisconnectedError
    # A compressed body is dropped without decompression: a bomb is only as large as its bytes on the wire.
    protocol.set_response_params(read_until_eof=True, auto_decompress=False)
    transport.writelines((head, body))
    return protocol


def _is_all_sent(connection: Connection) -> bool:
    """False if the answer came before the server took the whole request: it may never take the rest."""
    return connection.transport is not None and connection.transport.get_write_buffer_size() == 0


def _drop(connection: Connection) -> None:
    """End a connection at once; does nothing for a released one.

    Closing alone would wait until the other side has taken the rest of the request, perhaps for ever.
    """
    if connection.transport is not None:
        connection.transport.abort()
    connection.close()
