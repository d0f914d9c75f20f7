"""One client's HTTP/1.1 connection: uvicorn's protocol with bounds on time and size, and the peer's certificate.

    head   →   body   →   response   →   idle   →   head …
      └──────────┴── refused: response, then linger ──┘

`check` ends a connection whose present step takes too long; the server calls `check` often. The parser, llhttp, leaves
some rules of a request's head to its user. Over TLS, buffers below the transport hide a response's progress from
asyncio, so the progress is read from the kernel.

Source: RFC 9112, and RFC 9110 for the statuses; Linux, `tcp(7)` (SIOCOUTQ, TCP_INFO) and `struct tcp_info` in
`include/uapi/linux/tcp.h`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import re
import socket
import struct
import termios
import urllib.parse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.door.door import PEER, REQUEST_ID, SECURITY, new_request_id
from gateway.door.settings import GatewaySettings
from gateway.errors import RETRY_HEADER, ApiError

if TYPE_CHECKING:
    from gateway.door.server import DoorServer

MOST_PIPELINED = 16
"""The maximum number of requests that may wait behind the running one.

When so many wait, later input is ignored, and the connection ends after the answers to the waiting requests.
"""
MOST_FIELDS = 256
GOODBYE_SECONDS = 1.0
MOST_READ_BYTES = 256 * 1024
"""The maximum number of bytes that uvloop hands over at once."""
_SDK_HEADER = RETRY_HEADER.encode()
_MALFORMED = ApiError(400, "malformed_request", "The request is not HTTP/1.1 as RFC 9112 defines it.")
_SLOW_HEAD = ApiError(408, "request_timeout", "The request's header fields took too long to arrive; repeat it.")
_SLOW_BODY = ApiError(408, "request_timeout", "The request's body arrives too slowly; repeat it over a faster link.")
_LARGE_HEAD = ApiError(
    431, "headers_too_large", "The request's header fields are too large; send fewer or shorter ones."
)
_LONG_URL = ApiError(414, "url_too_long", "The request's URL is too long; shorten its query.")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(:[0-9]{0,5})?")
"""Matches the value of `Host`: `uri-host` and port, by RFC 9112, section 3.2."""
_BYTES_ACKED = struct.Struct("=120xQ")
"""The byte offset of `tcpi_bytes_acked`: after 8 bytes, 24 numbers of 32 bits and two rates of 64 bits."""


class DoorConnection(HttpToolsProtocol):
    """A connection. `lost` is called once, when the connection has ended."""

    def __init__(
        self, server: DoorServer, accepted: socket.socket, lost: Callable[[], None], client: str | None = None
    ) -> None:
        """`client` is the address that a proxy names; by default the socket's peer is the client."""
        super().__init__(server.config, server.state, {})
        self._socket = accepted
        self._limits = server.limits
        self._refused = server.count_refused
        self._lost = lost
        self._named = client
        self._proxies = server.proxies
        self.begun = False
        """True once the TLS handshake is done; a connection that has begun calls `lost` when it ends."""
        self._peer: bytes | None = None
        self._outlet: Outlet
        """The transport that the connection's cycles get."""
        self._head_since: float | None = None
        """The loop's time when the wait for a request's head began; None while the connection awaits no head."""
        self._in_head = True
        self._head_bytes = 0
        self._field_bytes = 0
        self._unseen = 0
        """The number of bytes of chunk headers and trailers that came since the last byte of a body."""
        self._body: Pace | None = None
        self._body_bytes = 0
        self._idle_since: float | None = None
        self._sending: Pace | None = None
        self._closing_since: float | None = None
        self._running: Cycle | None = None
        self._deaf = False
        """True if further input is discarded."""
        self._peer_ended = False
        """True if the client has ended its side and still reads."""
        self._linger: tuple[float, Pace] | None = None
        self._discarded = 0

    # -- the transport's events ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the connection. With TLS, this is called after the handshake."""
        super().connection_made(transport)
        self.begun = True
        self._outlet = Outlet(transport, self._finish)
        connection = transport.get_extra_info("ssl_object")
        self._peer = connection.getpeercert(binary_form=True) if connection is not None else None
        if self._named is not None:
            self.client = (self._named, 0)
        self._head_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the waiting requests, and let the running request notice that its client is gone."""
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)
        self._lost()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a client that has ended its side after a whole request; end any other client's connection.

        TLS has no half-closed connections, and OpenAI's SDKs end their side only when they leave.
        """
        working = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if not working or self._linger is not None or self.scheme == "https":
            return False
        if any(name == _SDK_HEADER for name, _ in self.cycle.scope["headers"]):
            return False
        self._deaf = self._peer_ended = True
        self.cycle.keep_alive = False
        return True

    def data_received(self, data: bytes) -> None:
        """Parse the bytes that arrived."""
        self._idle_since = None
        if self._deaf:
            self._discarded += len(data)
            return
        if self._head_since is None and self._body is None:
            self._head_since = self.loop.time()
        if self._in_head:
            self._head_bytes += len(data)
        self._unseen += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end_after_response()
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause.error if isinstance(cause, RefusedHeadError) else _MALFORMED)
        else:
            self._check_sizes()

    def _check_sizes(self) -> None:
        most = self._limits.head_bytes
        if self._deaf:
            return
        if self._in_head and self._head_bytes > most:
            self._refuse(_LARGE_HEAD)
        elif self._body is not None and self._unseen > most + MOST_READ_BYTES:
            self._refuse(_MALFORMED)

    # -- the parser's events ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request's head."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes, self._field_bytes = 1, 0
        if self._head_since is None:
            self._head_since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        """Add this part to the URL. Raises RefusedHeadError."""
        super().on_url(url)
        if len(self.url) > self._limits.url_bytes:
            raise RefusedHeadError(_LONG_URL)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a field of the head. A trailer's field is dropped, because it must not change a running request."""
        if not self._in_head:
            return
        self._field_bytes += len(name) + len(value) + 4
        if self._field_bytes > self._limits.head_bytes or len(self.headers) >= MOST_FIELDS:
            raise RefusedHeadError(_LARGE_HEAD)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, or queue the request behind the running one."""
        version = self.parser.get_http_version()
        self.scope["http_version"] = version
        method = self.scope["method"] = self.parser.get_method().decode("ascii")
        check_fields(version, self.headers, upgrades=self.parser.should_upgrade())
        path, raw_path, query = read_target(method, self.url)
        self.scope["path"], self.scope["raw_path"], self.scope["query_string"] = path, raw_path, query
        if self.client is not None:
            self.scope["client"] = (self._proxies.client_of(self.client[0], self.headers), self.client[1])
        if self._peer is not None:
            cast("dict[str, Any]", self.scope)[PEER] = self._peer
        self._in_head, self._head_since, self._unseen = False, None, 0
        self._body, self._body_bytes = _pace(self._limits, self.loop.time(), 0), 0
        before, self.cycle = self.cycle, self._new_cycle(version)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
            return
        self.flow.pause_reading()
        self.pipeline.appendleft((self.cycle, self.app))
        if len(self.pipeline) >= MOST_PIPELINED:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _new_cycle(self, version: str) -> Cycle:
        return Cycle(
            scope=self.scope,
            transport=cast("asyncio.Transport", self._outlet),
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue and version == "1.1",
            keep_alive=version == "1.1" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )

    def on_body(self, body: bytes) -> None:
        """Hand a part of the body to its request."""
        self._unseen = 0
        self._body_bytes += len(body)
        if self._linger is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request's body."""
        self._body = None
        if self._linger is not None:
            self.transport.close()
        else:
            super().on_message_complete()
        if self._linger is not None or len(self.pipeline) >= MOST_PIPELINED:
            self._deaf = True
            raise RefusedHeadError  # stops the parser: later input on this connection gets no answer

    # -- ends ------------------------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        """Start the next waiting request, or wait for a request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._linger is not None:
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._head_since is None:
            self._idle_since = self.loop.time()

    def _refuse(self, error: ApiError) -> None:
        """Refuse all further input. Earlier requests are answered first."""
        already, self._deaf = self._deaf, True
        cycle = cast("Cycle | None", self.cycle)
        if already or self._linger is not None or self.transport.is_closing():
            return
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
            if cycle.more_body:
                cycle.fail(error)
            return
        self._refused(error.status)
        self.transport.write(_refusal_bytes(error, self.server_state.default_headers))
        self._finish()

    def _end_after_response(self) -> None:
        """Ignore an `Upgrade`: answer the request, and discard all input after it (RFC 9110, section 7.8)."""
        self._deaf = True
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _finish(self) -> None:
        """End the connection in order. Input that is still on its way is read and discarded for a while.

        A socket that is closed with unread input resets the connection, and the client may never see the response.
        """
        if self._linger is not None or self.transport.is_closing():
            return
        if self._peer_ended or (self._body is None and not self._deaf):
            self.transport.close()
            return
        self._linger = self.loop.time(), _pace(self._limits, self.loop.time(), self._received)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def shutdown(self) -> None:
        """End the connection when the server stops: at once, or after the response to the running request.

        Streams of events end at once.
        """
        super().shutdown()
        if self._running is not None:
            self._running.end_events()

    # -- the clock -------------------------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """End the connection if its present step takes too long. `now` is the loop's time."""
        limits = self._limits
        if self._takes_too_slowly(now) or self._says_no_goodbye(now):
            self.transport.abort()
        elif self._linger is not None:
            since, pace = self._linger
            if now - since > limits.linger_seconds or pace.slow(now, self._received):
                self.transport.abort()
        elif self._head_since is not None and now - self._head_since > limits.head_seconds:
            self._head_too_slow()
        elif self._idle_since is not None and now - self._idle_since > limits.keep_alive_seconds:
            self.transport.close()
        elif self._body is not None:
            self._check_body(now, self._body)

    def _head_too_slow(self) -> None:
        """End a connection whose client sent no request, or only part of one, in time."""
        working = self.cycle is not None and not self.cycle.response_complete
        if working or (self._in_head and self._head_bytes):
            self._refuse(_SLOW_HEAD)
        else:
            self.transport.close()

    def _check_body(self, now: float, pace: Pace) -> None:
        if self.cycle.waiting_for_100_continue or self.flow.read_paused:
            pace.restart(now, self._body_bytes)  # the client has to wait now, so this time does not count
        elif pace.slow(now, self._body_bytes) and not self._deaf:
            self._refuse(_SLOW_BODY)

    def _takes_too_slowly(self, now: float) -> bool:
        """True if the peer reads the response too slowly."""
        if _unacknowledged_bytes(self._socket) == 0:
            self._sending = None
            return False
        moved = _acknowledged_bytes(self._socket)
        if self._sending is None:
            self._sending = _pace(self._limits, self.loop.time(), moved)
        return self._sending.slow(now, moved)

    def _says_no_goodbye(self, now: float) -> bool:
        """True if the peer has the whole response, but did not answer the gateway's `close_notify` (the end of TLS)."""
        if not self.transport.is_closing() or self._sending is not None:
            return False
        if self._closing_since is None:
            self._closing_since = now
        return now - self._closing_since > GOODBYE_SECONDS

    @property
    def _received(self) -> int:
        return self._body_bytes + self._discarded


# -- the head of a request ---------------------------------------------------------------------------------------------


class RefusedHeadError(Exception):
    """The request's head is refused with this error."""

    def __init__(self, error: ApiError = _MALFORMED) -> None:
        super().__init__(error.code)
        self.error = error


def check_fields(version: str, fields: Sequence[tuple[bytes, bytes]], *, upgrades: bool) -> None:
    """Refuse a head that another server on the way may read otherwise. Raises RefusedHeadError.

    `fields` have names in lower case. `upgrades` is true for a request with `Upgrade`: the parser ends such a request
    at its head, and would read the body as the next request.
    """
    hosts = [value for name, value in fields if name == b"host"]
    coded = [value.strip().lower() for name, value in fields if name == b"transfer-encoding"]
    if version not in ("1.0", "1.1") or len(hosts) > 1 or (version == "1.1" and not hosts):
        raise RefusedHeadError
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise RefusedHeadError
    if coded and (version == "1.0" or coded != [b"chunked"]):
        raise RefusedHeadError
    if upgrades and (coded or any(name == b"content-length" for name, _ in fields)):
        raise RefusedHeadError


def read_target(method: str, url: bytes) -> tuple[str, bytes, bytes]:
    """Return the decoded path, the path as it was sent, and the query. Raises RefusedHeadError.

    The target is an absolute path, a whole URL, or `*` (RFC 9112, section 3.2).
    A NUL in the path or the query is refused here, because PostgreSQL stores no NUL, and the request could only fail
    later.
    """
    if method == "CONNECT":
        raise RefusedHeadError
    if url == b"*":
        return "*", b"*", b""
    try:
        parsed = httptools.parse_url(url)
        raw = parsed.path or b"/"
        path = urllib.parse.unquote(raw.decode("ascii")) if b"%" in raw else raw.decode("ascii")
    except (httptools.HttpParserError, UnicodeDecodeError):
        raise RefusedHeadError from None
    query = parsed.query or b""
    if "\0" in path or b"%00" in query:
        raise RefusedHeadError
    return path, raw, query


# -- the speed of transfers --------------------------------------------------------------------------------------------


class Pace:
    """Watches one transfer: each window of `seconds` has to carry `seconds * bytes_per_second` bytes.

    So a client that moves one byte now and then cannot hold a connection for ever.
    Times are in seconds, from any clock that does not run backwards; `moved` counts the transfer's bytes so far.
    """

    def __init__(self, seconds: float, bytes_per_second: float, now: float, moved: int = 0) -> None:
        self._seconds = seconds
        self._least = max(1.0, seconds * bytes_per_second)
        self._since = now
        self._moved = moved

    def slow(self, now: float, moved: int) -> bool:
        """Return whether the transfer is too slow. A window that carried enough bytes starts over."""
        if moved - self._moved >= self._least:
            self.restart(now, moved)
        return now - self._since > self._seconds

    def restart(self, now: float, moved: int) -> None:
        """Begin a new window. Callers do so while the peer cannot move bytes, so that this time is not counted."""
        self._since, self._moved = now, moved


def _pace(limits: GatewaySettings, now: float, moved: int) -> Pace:
    return Pace(limits.transfer_seconds, limits.transfer_bytes_per_second, now, moved)


# -- refusals of input that is no request ------------------------------------------------------------------------------


def _refusal_bytes(error: ApiError, default_headers: list[tuple[bytes, bytes]]) -> bytes:
    """Return a whole response in OpenAI's error shape, after which the connection ends.

    No application can answer input that is no request.
    """
    body = json.dumps(error.body).encode()
    fields = [
        *default_headers,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (REQUEST_ID.encode(), new_request_id().encode()),
        *SECURITY,
        (b"connection", b"close"),
    ]
    head = b"".join(b"%b: %b\r\n" % field for field in fields)
    return STATUS_LINE[error.status] + head + b"\r\n" + body


# -- the progress of a response ----------------------------------------------------------------------------------------


def _unacknowledged_bytes(connection: socket.socket) -> int:
    """Return the number of bytes that the kernel holds for the peer.

    If the result is 0, the process holds no bytes for the peer either.
    """
    try:
        return int(struct.unpack("=i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, ValueError):
        return 0  # the socket is closed, and holds no bytes


def _acknowledged_bytes(connection: socket.socket) -> int:
    """Return the number of bytes that the peer has acknowledged since the connection began."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
    except OSError:
        return 0  # the socket is closed
    return int(_BYTES_ACKED.unpack(info)[0])


class Outlet:
    """The transport that a connection gives its cycles: `close` lets the connection end in order."""

    def __init__(self, transport: asyncio.Transport, finish: Callable[[], None]) -> None:
        self._write = transport.write
        self.is_closing = transport.is_closing
        self.close = finish
        self.holds = False
        """True while the next bytes wait for those after them: a head and its body are one TLS record, one packet."""
        self._held = b""

    def write(self, content: bytes) -> None:
        """Write these bytes after the held ones."""
        content, self._held = self._held + content, b""
        if self.holds:
            self.holds, self._held = False, content
        else:
            self._write(content)


class Cycle(RequestResponseCycle):
    """A request whose body may be refused while it arrives."""

    fault: ApiError | None = None
    _until_end = False
    _events = False
    _task: asyncio.Task[None] | None = None

    def fail(self, error: ApiError) -> None:
        """Refuse the rest of the body: `receive` raises the error, and the connection ends after the response."""
        self.fault = error
        self.keep_alive = False
        self.message_event.set()

    async def run_asgi(self, app: Any) -> None:
        """Run the application.

        The application answers its own errors; if the application breaks off a response, the connection ends.
        """
        self._task = asyncio.current_task()
        try:
            await app(self.scope, self.receive, self.send)
        finally:
            if not self.response_complete and not self.disconnected:
                self.transport.close()
            self.on_response = _nothing

    async def receive(self) -> Any:
        """Return the next part of the body. Raises ApiError (400, 408) for a malformed or slow body."""
        message = await super().receive() if self.fault is None else None
        if self.fault is None:
            return message
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        raise self.fault

    async def send(self, message: Any) -> None:
        """Send a part of the response.

        A connection with an unread body ends after the response. An HTTP/1.0 client knows no chunks, so the end
        of the connection marks the end of a response without a length (RFC 9112, section 6.3).
        """
        if message["type"] == "http.response.start":
            if self.more_body:
                self.keep_alive = False
            fields = {name.lower(): value for name, value in message.get("headers", ())}
            self._events = fields.get(b"content-type", b"").startswith(b"text/event-stream")
            if b"content-length" in fields:  # the body follows at once; that of a stream may take its time
                cast("Any", self.transport).holds = self.scope["method"] != "HEAD"
            elif self.scope["http_version"] == "1.0":
                self.chunked_encoding, self._until_end = False, True
        elif self._until_end:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)

    def end_events(self) -> None:
        """End a stream of events, which never ends by itself; its client connects again to another gateway."""
        if self._events and self._task is not None and not self.response_complete:
            self._task.cancel()


def _nothing() -> None:
    """Do nothing. This replaces the callback of a response when the cycle has ended."""
