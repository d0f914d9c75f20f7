"""One HTTP/1.1 exchange: a POST goes out on a warm or a new connection, and its answer is read.

The module uses only the parts of aiohttp below its session: the pool of connections, TLS and the parser. The session's
redirects, cookies, netrc, proxies and bodies of unknown length are left out, because a callback never needs them, and
without them a request costs half as much. A request is never repeated: each call writes at most once.
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
"""aiohttp's own timers stay off. One deadline covers the whole exchange, so that timeouts cannot add up."""

_REMEMBERED_TARGETS = 4096


@dataclass(slots=True)
class CallbackAnswer:
    """An answer as far as it was read: in full, or until a deadline cut the exchange off."""

    status: int | None = None
    """None if no status line was read."""
    retry_after: str | None = None
    excerpt: bytearray = field(default_factory=bytearray)
    """The beginning of the body, not decompressed."""


@dataclass(frozen=True, slots=True)
class _Target:
    """The parts that all requests to one URL share."""

    request: aiohttp.ClientRequest
    """A request that is never sent. The pool finds a connection by this request's host, port and TLS."""
    head: str
    """The request's first lines."""


class Exchanges:
    """Sends POSTs through a connector. Use both on the event loop that makes them."""

    def __init__(self, connector: GuardedConnector, response_cap_bytes: int, excerpt_bytes: int = 0) -> None:
        self._connector = connector
        self._cap = response_cap_bytes
        self._excerpt_bytes = excerpt_bytes
        self._target = lru_cache(_REMEMBERED_TARGETS)(_target)

    async def post(
        self, url: URL, body: bytes, headers: Mapping[str, str], tls: ssl.SSLContext, answer: CallbackAnswer
    ) -> None:
        """Send one POST, and fill in the answer. The body is read up to the cap; only the excerpt is kept.

        Raises EgressRefused and aiohttp's errors: ClientError, HttpProcessingError, OSError. Raises ValueError for a
        header with a line break or a character outside ASCII.
        """
        target = self._target(url, tls)
        head = target.head + _lines(headers) + f"Content-Length: {len(body)}\r\n\r\n"
        connection = await self._connector.connect(target.request, [], _NO_TIMEOUT)
        try:
            protocol = _write(connection, head.encode("ascii"), body)
            if await self._read(protocol, answer) and _is_all_sent(connection):
                connection.release()  # puts the connection back into the pool, unless the answer announced a close
        finally:
            _drop(connection)

    async def close(self) -> None:
        """Close all connections."""
        await self._connector.close()

    async def _read(self, protocol: ResponseHandler, answer: CallbackAnswer) -> bool:
        """Read the answer.

        Return True if the whole body was read, so that the connection can serve the next request.
        """
        message, payload = await protocol.read()  # this response is final, because `OneAnswerEach` drops any 1xx
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
    """Return the parts that all requests to a URL share. Call this on the running loop."""
    lines = (
        f"POST {url.raw_path_qs} HTTP/1.1",
        f"Host: {url.host_port_subcomponent}",
        f"User-Agent: {USER_AGENT}",
        "Content-Type: application/json",
    )
    request = aiohttp.ClientRequest("POST", url, loop=asyncio.get_running_loop(), ssl=tls)
    return _Target(request, "".join(f"{line}\r\n" for line in lines))


def _lines(headers: Mapping[str, str]) -> str:
    """Return the header lines for the wire. Raises ValueError for a name or value with a line break."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a header has a line break")
    return lines


def _write(connection: Connection, head: bytes, body: bytes) -> ResponseHandler:
    """Write the request once, and return the protocol that parses the answer."""
    protocol, transport = connection.protocol, connection.transport
    if protocol is None or transport is None:
        raise aiohttp.ServerDisconnectedError
    # A body is not decompressed, so a compression bomb is only as large as its bytes on the wire.
    protocol.set_response_params(read_until_eof=True, auto_decompress=False)
    transport.writelines((head, body))
    return protocol


def _is_all_sent(connection: Connection) -> bool:
    """False if the answer came before the server had read the whole request; the server may never read the rest."""
    return connection.transport is not None and connection.transport.get_write_buffer_size() == 0


def _drop(connection: Connection) -> None:
    """End a connection at once, unless it was released.

    A mere close would wait until the other side has read the rest of the request, perhaps for ever.
    """
    if connection.transport is not None:
        connection.transport.abort()
    connection.close()
