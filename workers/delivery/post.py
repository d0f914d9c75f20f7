"""One callback attempt: at most one POST, and the outcome of the attempt.

Requests are never repeated, since a POST is not idempotent (RFC 9110, section 9.2.2). A connection that closes without
an answer always makes the attempt fail. Redirects are never followed, so a 302 cannot turn a POST into a GET that
counts as delivered. This module ignores the environment's proxies and netrc.

The module uses only the parts of aiohttp below its session: the opening of connections, TLS and the parser. The
session's redirects, cookies, netrc, proxies and bodies of unknown length are left out, because a callback never needs
them, and without them a request costs half as much.
"""

from __future__ import annotations

import asyncio
import codecs
import errno
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from importlib.metadata import version

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError

from schemas.topics import TRACEPARENT
from telemetry.clock import Clock
from telemetry.logs import get_logger, origin_of
from telemetry.throttle import LogThrottle
from telemetry.traces import Kind, annotate, collecting, parse_traceparent, span
from workers.delivery.settings import DeliverySettings
from workers.delivery.tls import TlsContexts
from workers.egress import EgressPolicy, EgressRefused, GuardedConnector, check_url
from workers.egress.answers import parse_retry_after

USER_AGENT = f"Postback/{version('postback')}"

_REMEMBERED_TARGETS = 4096
_SAY_SECONDS = 60.0
"""The shortest time in seconds between two log lines about exhausted resources.

All callbacks meet the same lack of resources, and would log a line each.
"""
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=None, sock_read=None, sock_connect=None)
"""aiohttp's own timers stay off. One deadline covers the whole exchange, so that timeouts cannot add up."""
_THROTTLING = frozenset({429, 502, 504})
_LACKS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = get_logger()


class Exhausted(Exception):  # noqa: N818 - named after the event
    """The machine lacked descriptors, ports or memory, so no request was sent. The text is the error's name."""


class FailureReason(StrEnum):
    """The reason for a failed attempt: a label of metrics, and the error class in `callback_attempts`."""

    REFUSED = "refused"
    """The egress guard refuses the URL itself, whatever its host resolves to. Permanent."""
    ADDRESS_REFUSED = "address_refused"
    """The egress guard refuses the host's present address.

    Temporary: name servers may give wrong answers for minutes.
    """
    GONE = "gone"
    """410: the consumer wants no more events at this URL. Permanent."""
    THROTTLED = "throttled"
    """429, 502, 504."""
    REDIRECTED = "redirected"
    """3xx. A redirect is never followed, because the producer did not name its target, and no guard checked it."""
    CLIENT_ERROR = "client_error"
    """Any other 4xx."""
    SERVER_ERROR = "server_error"
    """Any other 5xx, and statuses outside 200 to 599."""
    TIMEOUT = "timeout"
    """The deadline passed during name resolution, connecting, TLS, the wait for headers, or the body of a 2xx."""
    DNS_FAILED = "dns_failed"
    CONNECT_FAILED = "connect_failed"
    TLS_FAILED = "tls_failed"
    CONNECTION_CLOSED = "connection_closed"
    """The connection closed before a status came. The endpoint may have closed an idle connection just before use."""
    BAD_RESPONSE = "bad_response"
    """The answer is not HTTP, its headers are too large, or the body of a 2xx ended early."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The consumer answered 2xx."""

    status: int
    duration_seconds: float
    answer_excerpt: str | None = field(default=None, repr=False)
    """The beginning of the answer's body, if a setting asks for it. The excerpt never reaches a log."""


@dataclass(frozen=True, slots=True)
class FailedDelivery:
    """The attempt failed: any outcome other than a 2xx that was read in full."""

    reason: FailureReason
    duration_seconds: float
    status: int | None = None
    """None if no status line was read."""
    retry_after_seconds: float | None = None
    """The `Retry-After` of a 4xx or 5xx, at most MAX_RETRY_AFTER_SECONDS."""
    detail: str | None = None
    """The egress guard's reason for a refusal, as a phrase without any part of the URL."""
    answer_excerpt: str | None = field(default=None, repr=False)
    """See `Delivered.answer_excerpt`."""


PostOutcome = Delivered | FailedDelivery


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
    """A request that is never sent. A connection is opened to this request's host, port and TLS."""
    key: ConnectionKey
    """Equal for all URLs that may share a connection."""
    head: bytes
    """The request's first lines."""


class Deadlines:
    """Makes timeouts of one length, with one timer for all. They must run on the event loop of the first timeout.

    All attempts have the same timeout, so the oldest attempt expires first, and one alarm for this attempt is enough. A
    timer for each attempt, as `asyncio.timeout` makes it, would cost a twentieth of a callback on a warm connection.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: dict[asyncio.Timeout, float] = {}
        """The timeouts, each with its deadline by the loop's clock. The oldest timeout is first."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: asyncio.TimerHandle | None = None

    def begin(self) -> asyncio.Timeout:
        """Return a timeout whose time starts now. The caller must enter it at once, and pass it to `end`."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        timeout = asyncio.Timeout(None)
        self._running[timeout] = at = loop.time() + self._seconds
        if self._alarm is None:
            self._alarm = loop.call_at(at, self._ring, loop)
        return timeout

    def end(self, timeout: asyncio.Timeout) -> None:
        """Remove a timeout, whether it has expired or not."""
        self._running.pop(timeout, None)

    def close(self) -> None:
        """Cancel the alarm. Attempts that still run have no deadline from now on."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        """Expire overdue timeouts, and set the alarm for the next timeout.

        All timeouts here belong to running attempts, since `end` removes the timeouts of finished attempts.
        """
        now, self._alarm = loop.time(), None
        while self._running:
            timeout, at = next(iter(self._running.items()))
            if at > now:
                self._alarm = loop.call_at(at, self._ring, loop)
                return
            del self._running[timeout]
            timeout.reschedule(now)


class WarmConnections:
    """Idle connections for the next requests, each for `keep_alive_seconds`. Runs on one event loop.

    aiohttp's own pool costs a tenth of a callback. The peer of a connection was checked when it was opened, and a peer
    never changes. No more connections are kept than attempts may run at a time: a tenant with a new host for each
    callback would otherwise take the open files and the memory of all tenants.
    """

    def __init__(self, keep_alive_seconds: float, most: int, clock: Clock) -> None:
        self._seconds = keep_alive_seconds
        self._most = most
        self._clock = clock
        self._idle: dict[ConnectionKey, deque[Connection]] = {}
        """The idle connections of each key, the one that was used last at the end."""
        self._since: dict[Connection, tuple[ConnectionKey, float]] = {}
        """The key and the monotonic time of the last use of each idle connection, the oldest first."""
        self._sweeping: asyncio.TimerHandle | None = None

    def take(self, key: ConnectionKey) -> Connection | None:
        """Return an idle connection, the one that was used last; None if there is none."""
        while (idle := self._idle.get(key)) is not None:
            connection = idle.pop()
            if not idle:
                del self._idle[key]
            _, since = self._since.pop(connection)
            if _is_open(connection) and self._clock.monotonic() - since <= self._seconds:
                return connection
            connection.close()
        return None

    def put(self, key: ConnectionKey, connection: Connection) -> None:
        """Keep a connection whose last answer was read in full; close it if the answer announced a close."""
        if connection.protocol is None or connection.protocol.should_close:
            connection.close()
            return
        if len(self._since) >= self._most:
            self._close_oldest()
        self._idle.setdefault(key, deque()).append(connection)
        self._since[connection] = key, self._clock.monotonic()
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(self._seconds, self._sweep)

    def close(self) -> None:
        """Close all idle connections."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        while self._since:
            self._close_oldest()

    def _close_oldest(self) -> None:
        """Close the idle connection that was used first. It is also the first one of its key."""
        connection, (key, _) = next(iter(self._since.items()))
        del self._since[connection]
        idle = self._idle[key]
        idle.popleft().close()
        if not idle:
            del self._idle[key]

    def _sweep(self) -> None:
        """Close the connections whose time is over, and come back while others are idle."""
        oldest = self._clock.monotonic() - self._seconds
        while self._since and next(iter(self._since.values()))[1] <= oldest:
            self._close_oldest()
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(self._seconds, self._sweep) if self._since else None


def _is_open(connection: Connection) -> bool:
    return connection.protocol is not None and connection.protocol.is_connected()


class Poster:
    """Sends POSTs over warm connections, behind the egress guard. All posts must run on one event loop."""

    def __init__(
        self,
        settings: DeliverySettings,
        policy: EgressPolicy,
        clock: Clock,
        *,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._clock = clock
        self._resolver = resolver
        self.tls = TlsContexts(settings, clock)
        """The TLS contexts of this poster's connections, by tenant."""
        # A URL's check depends on its text alone. The connector checks the address of every connection.
        self._target = lru_cache(_REMEMBERED_TARGETS)(self._checked_target)
        self._connector: GuardedConnector | None = None
        self._warm = WarmConnections(settings.keep_alive_seconds, settings.window_records, clock)
        self._deadlines = Deadlines(settings.deadline_seconds)
        self._traced = collecting()
        self._exhausted_throttle = LogThrottle(_SAY_SECONDS)

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], tenant: str, number: int = 1
    ) -> PostOutcome:
        """Make one attempt. The other side's failures are outcomes, not exceptions. `headers` must be clean ASCII.

        Raises Exhausted if a lack of this machine's own resources prevented the attempt, and ValueError for a header
        with a line break or a character outside ASCII.

        If spans are collected when the poster is made, each attempt has a span and sends the span's `traceparent`.
        `number` is the attempt's number, from 1, for the span.
        """
        if not self._traced:
            return await self._attempt(url, body, headers, tenant)
        parent = parse_traceparent(headers.get(TRACEPARENT))
        about: dict[str, str | int] = {"http.request.method": "POST", "url.origin": origin_of(url), "attempt": number}
        if "webhook-id" in headers:
            about["webhook_id"] = headers["webhook-id"]
        with span("POST callback", parent, about, kind=Kind.CLIENT) as context:
            traced = {**headers, TRACEPARENT: context.traceparent} if context is not None else headers
            outcome = await self._attempt(url, body, traced, tenant)
            annotate(_attributes(outcome), failed=isinstance(outcome, FailedDelivery))
        return outcome

    async def close(self) -> None:
        """Close all connections."""
        self._deadlines.close()
        self._warm.close()
        if self._connector is not None:
            await self._connector.close()
            self._connector = None

    async def _attempt(self, url: str, body: bytes, headers: Mapping[str, str], tenant: str) -> PostOutcome:
        """Make the attempt, with one deadline around every step that the other side can delay."""
        try:
            target = self._target(url, self.tls.of(tenant))
        except EgressRefused as refused:
            return FailedDelivery(FailureReason.REFUSED, 0.0, detail=str(refused.reason))
        started = self._clock.monotonic()
        answer, detail = CallbackAnswer(), None
        deadline = self._deadlines.begin()
        try:
            async with deadline:
                failure = await self._exchange(target, body, headers, answer)
        except TimeoutError:
            failure = FailureReason.TIMEOUT
        except EgressRefused as refused:
            failure, detail = FailureReason.ADDRESS_REFUSED, str(refused.reason)
        finally:
            self._deadlines.end(deadline)
        duration = self._clock.monotonic() - started
        if answer.status is None or (failure is not None and _is_success(answer.status)):
            reason, excerpt = failure or FailureReason.BAD_RESPONSE, excerpt_of(answer)
            return FailedDelivery(reason, duration, answer.status, detail=detail, answer_excerpt=excerpt)
        return self._judge(answer.status, answer, duration)

    async def _exchange(
        self, target: _Target, body: bytes, headers: Mapping[str, str], answer: CallbackAnswer
    ) -> FailureReason | None:
        """Write the request once, on a warm or a new connection, and read the answer. Return the reason of a failure.

        Only this method maps the errors of libraries. Raises EgressRefused and Exhausted. The deadline's cancellation
        passes through.
        """
        lines = f"{_lines(headers)}Content-Length: {len(body)}\r\n\r\n".encode("ascii")
        try:
            connection = self._warm.take(target.key) or await self._connected(target)
            is_kept = False
            try:
                protocol, transport = connection.protocol, connection.transport
                if protocol is None or transport is None:
                    raise aiohttp.ServerDisconnectedError
                # A body is not decompressed, so a compression bomb is only as large as its bytes on the wire.
                protocol.set_response_params(read_until_eof=True, auto_decompress=False)
                transport.writelines((target.head, lines, body))
                # If the answer came before the server had read the whole request, it may never read the rest.
                is_kept = await self._read(protocol, answer) and transport.get_write_buffer_size() == 0
            finally:
                if not is_kept:
                    _drop(connection)
            self._warm.put(target.key, connection)
        except (aiohttp.ClientSSLError, ssl.SSLError):
            return FailureReason.TLS_FAILED
        except aiohttp.ClientConnectorError as error:
            return self._unconnected(error)
        except (aiohttp.ClientPayloadError, HttpProcessingError):
            return FailureReason.BAD_RESPONSE
        except (aiohttp.ClientError, OSError):
            return FailureReason.CONNECTION_CLOSED
        return None

    async def _read(self, protocol: ResponseHandler, answer: CallbackAnswer) -> bool:
        """Read the answer up to the cap, and keep its excerpt. Return True if the whole body was read."""
        message, payload = await protocol.read()  # this response is final, because `OneAnswerEach` drops any 1xx
        answer.status = message.code
        answer.retry_after = message.headers.get("Retry-After")
        rest, most = self._settings.response_cap_bytes, self._settings.answer_excerpt_bytes
        while not payload.at_eof():
            data = await payload.readany()
            rest -= len(data)
            if (room := most - len(answer.excerpt)) > 0:
                answer.excerpt += data[:room]
            if rest < 0:
                return False
        return True

    def _judge(self, status: int, answer: CallbackAnswer, duration: float) -> PostOutcome:
        """Return the outcome of a status. Only a 2xx needs a complete body; other statuses alone decide the outcome."""
        if _is_success(status):
            return Delivered(status, duration, excerpt_of(answer))
        wait = None
        if answer.retry_after is not None and status >= 400:
            wait = parse_retry_after(answer.retry_after, self._clock.time())
        return FailedDelivery(_reason_of(status), duration, status, wait, answer_excerpt=excerpt_of(answer))

    # -- connections -----------------------------------------------------------------------------------------------

    def _checked_target(self, url: str, tls: ssl.SSLContext) -> _Target:
        """Return the parts that all requests to a URL share. Raises EgressRefused. Call this on the running loop."""
        target = check_url(url, self._policy)
        lines = (
            f"POST {target.raw_path_qs} HTTP/1.1",
            f"Host: {target.host_port_subcomponent}",
            f"User-Agent: {USER_AGENT}",
            "Content-Type: application/json",
        )
        request = aiohttp.ClientRequest("POST", target, loop=asyncio.get_running_loop(), ssl=tls)
        return _Target(request, request.connection_key, "".join(f"{line}\r\n" for line in lines).encode("ascii"))

    async def _connected(self, target: _Target) -> Connection:
        """Open a connection. Raises EgressRefused and aiohttp's errors."""
        if self._connector is None:
            # The connector has no limit, because destinations.py limits the attempts at each destination.
            self._connector = GuardedConnector(self._policy, self._resolver, limit=0)
        return await self._connector.connect(target.request, [], _NO_TIMEOUT)

    def _unconnected(self, error: aiohttp.ClientConnectorError) -> FailureReason:
        """Return the reason for a failed connection. Raises Exhausted if this machine lacks resources."""
        lacking = exhausted_by(error)
        if lacking is not None:
            if self._exhausted_throttle.admit(self._clock.monotonic()) is not None:
                log.error(
                    "This process can open no more connections; deferring callbacks. "
                    "Raise its limit of open files, or run more processes.",
                    action="resources-exhausted",
                    error=lacking,
                )
            raise Exhausted(lacking) from None
        is_dns = isinstance(error, aiohttp.ClientConnectorDNSError)
        return FailureReason.DNS_FAILED if is_dns else FailureReason.CONNECT_FAILED


def _lines(headers: Mapping[str, str]) -> str:
    """Return the header lines for the wire. Raises ValueError for a name or value with a line break."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a header has a line break")
    return lines


def _drop(connection: Connection) -> None:
    """End a connection at once.

    A mere close would wait until the other side has read the rest of the request, perhaps for ever.
    """
    if connection.transport is not None:
        connection.transport.abort()
    connection.close()


def exhausted_by(error: aiohttp.ClientConnectorError) -> str | None:
    """Return the errno name of the resource that this machine lacks; None if it lacks no resource.

    None means that the other side or its name servers caused the error. Three errors leave the cause open, and then a
    trial socket decides: an error from c-ares, which has no errno; EADDRNOTAVAIL, which an IPv6 address also causes on
    a machine without IPv6; and the error of several addresses that failed differently, which has no errno.
    """
    if error.errno in _LACKS:
        return errno.errorcode[error.errno]
    if not isinstance(error, aiohttp.ClientConnectorDNSError) and error.errno not in (errno.EADDRNOTAVAIL, None):
        return None
    try:
        with socket.socket() as trial:
            trial.bind(("", 0))
    except OSError as lack:
        return errno.errorcode.get(lack.errno or 0, "unknown")
    return None


def _attributes(outcome: PostOutcome) -> dict[str, str | int]:
    """Return a span's attributes for the outcome, with OpenTelemetry's names."""
    said: dict[str, str | int] = {}
    if outcome.status is not None:
        said["http.response.status_code"] = outcome.status
    if isinstance(outcome, FailedDelivery):
        said["error.type"] = str(outcome.reason)
    return said


def excerpt_of(answer: CallbackAnswer) -> str | None:
    """Return the excerpt as text, without a last character that the cut would split; None for an empty text."""
    if not answer.excerpt:
        return None
    return codecs.getincrementaldecoder("utf-8")("replace").decode(answer.excerpt) or None


def _is_success(status: int) -> bool:
    return 200 <= status < 300


def _reason_of(status: int) -> FailureReason:
    if status == 410:
        return FailureReason.GONE
    if status in _THROTTLING:
        return FailureReason.THROTTLED
    if 300 <= status < 400:
        return FailureReason.REDIRECTED
    return FailureReason.CLIENT_ERROR if 400 <= status < 500 else FailureReason.SERVER_ERROR
