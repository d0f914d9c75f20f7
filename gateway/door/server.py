"""The HTTP server as a side task of the process: uvicorn's protocol on uvloop and httptools, HTTP/1.1.

The server accepts connections itself. So the server counts connections before the TLS handshake, and bounds the
handshake's time. uvicorn's own server would also handle the process's signals, and end the process with status 143.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import Literal

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from gateway.access.rates import network_of
from gateway.door.connection import DoorConnection
from gateway.door.door import nothing
from gateway.door.proxies import NoProxyHeader, TrustedProxies, read_proxy_header
from gateway.door.settings import GatewaySettings
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from telemetry.throttle import LogThrottle
from workers.system.side_task import SideTask

BACKLOG = 1024
UNREAD = "unread"
"""The metrics' route of a request that no application saw."""
_LAST_WORDS_SECONDS = 1.0
"""Requests that were cancelled at the stop may still respond for this time."""
_SHUTDOWN_SECONDS = 3600.0
"""uvloop aborts a TLS connection that has not ended within this many seconds after the call of `close`.

The limit is as long as an hour, because uvloop counts these seconds even while it still sends bytes. `DoorConnection`
ends the connections of slow peers much sooner.
"""
_LOOK_SECONDS = 1.0
_LOOK_AT_STOP_SECONDS = 0.1
_ACCEPT_PAUSE_SECONDS = 0.1

Refusal = Literal["all_taken", "client_has_too_many"]

log = get_logger()


class DoorServer(SideTask):
    """Serves the application on a bound socket until cancelled; then answers the running requests."""

    def __init__(
        self,
        app: ASGIApp,
        bound: socket.socket,
        tls: ssl.SSLContext | None,
        limits: GatewaySettings,
        clock: Clock,
        metrics: Metrics,
        look: Callable[[], None] = nothing,
    ) -> None:
        """`look` notices changed certificates. The server calls `look` each second, even without new connections."""
        self.config = Config(
            app,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self.config.load()
        self.state = ServerState()
        self.proxies = TrustedProxies(limits.trusted_proxies)
        self._socket = bound
        self._tls = tls
        self.limits = limits
        self._clock = clock
        self._look = look
        self._metrics = metrics
        metrics.http_connections_refused.begin()
        self._places = Places(limits.connections, limits.connections_per_address)
        self._throttle = LogThrottle(60.0)
        self._handshakes: set[asyncio.Task[None]] = set()
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._serving = False

    def reasons(self) -> list[str]:
        """Return the reason why no request is served; empty unless the server is starting or stopping."""
        return [] if self._serving else ["the door does not serve"]

    async def ended(self) -> None:
        """Serve until cancelled; then stop accepting, and answer the running requests within `stop_seconds`."""
        self._socket.setblocking(False)
        self._socket.listen(BACKLOG)
        self._tell_date()
        self._serving = True
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._accept())
                tasks.create_task(self._watch(_LOOK_SECONDS))
        finally:
            self._serving = False
            self._socket.close()
            await self._finish()

    # -- connections -----------------------------------------------------------------------------------------------

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(self._socket)
            except OSError as error:
                # The client is gone already, or the process is out of file descriptors. Pause, so that some can become
                # free.
                self._warn("accept", f"A connection could not be accepted ({error.strerror}); going on.")
                await asyncio.sleep(_ACCEPT_PAUSE_SECONDS)
                continue
            self._admit(accepted, address[0])
            # Let other tasks run, because `sock_accept` never waits while there are connections to accept.
            await asyncio.sleep(0)

    def _admit(self, accepted: socket.socket, address: str) -> None:
        client = None if self.proxies.trusts(address) else address
        refusal = self._places.take(client)
        if refusal is not None:
            self._turn_away(accepted, refusal)
            return
        self._metrics.http_connections.set(len(self._places))
        self._none_open.clear()
        task = asyncio.create_task(self._begin(accepted, client))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    def _turn_away(self, accepted: socket.socket, refusal: Refusal) -> None:
        self._metrics.http_connections_refused.labels(refusal).inc()
        self._warn(refusal, "Too many connections are open; closing further ones at once.")
        accepted.close()

    async def _begin(self, accepted: socket.socket, client: str | None) -> None:
        """Do the TLS handshake, and give the connection to its protocol. None is the client of a trusted proxy."""
        if client is None and self.limits.proxy_protocol:
            with contextlib.ExitStack() as undo:
                undo.callback(self._free, None)
                undo.callback(accepted.close)
                try:
                    async with asyncio.timeout(self.limits.head_seconds):
                        client = await read_proxy_header(accepted)
                except (OSError, TimeoutError, NoProxyHeader):
                    self._metrics.http_connections_refused.labels("handshake").inc()
                    return
                if client is not None and (refusal := self._places.name(client)):
                    self._turn_away(accepted, refusal)
                    return
                undo.pop_all()
        await self._hand_over(accepted, client)

    async def _hand_over(self, accepted: socket.socket, client: str | None) -> None:
        connection = DoorConnection(self, accepted, lambda: self._free(client), client)
        secure = self._tls is not None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=self.limits.head_seconds if secure else None,
                ssl_shutdown_timeout=_SHUTDOWN_SECONDS if secure else None,
            )
        except OSError:  # the client lacks TLS 1.3 or a certificate (ssl.SSLError), is too slow, or has gone
            self._metrics.http_connections_refused.labels("handshake").inc()
            if not connection.begun:
                self._free(client)
        except asyncio.CancelledError:
            if not connection.begun:
                self._free(client)
            raise

    def _free(self, client: str | None) -> None:
        self._places.free(client)
        self._metrics.http_connections.set(len(self._places))
        if not len(self._places):
            self._none_open.set()

    def count_refused(self, status: int) -> None:
        """Count a request that no application saw, by the status of its refusal."""
        self._metrics.http_requests.labels(UNREAD, str(status)).inc()

    # -- the clock -------------------------------------------------------------------------------------------------

    async def _watch(self, seconds: float) -> None:
        """Check every connection's time and the certificates, and renew the date of responses."""
        limits, loop = self.limits, asyncio.get_running_loop()
        patience = min(limits.head_seconds, limits.transfer_seconds, limits.keep_alive_seconds)
        while True:
            await asyncio.sleep(min(seconds, patience / 10))
            self._tell_date()
            self._look_safely()
            now = loop.time()
            for connection in list(self.state.connections):
                try:
                    _ours(connection).check(now)
                except Exception:
                    # An error here would end the watch, and with it the process, for all other clients.
                    log.exception("A connection could not be checked; ending it.", action="connection-failed")
                    connection.transport.abort()

    def _look_safely(self) -> None:
        try:
            self._look()
        except Exception:
            if self._throttle.admit(self._clock.monotonic(), "certificates") is not None:
                log.exception("The certificates could not be checked; going on.", action="certificates-reload-failed")

    def _tell_date(self) -> None:
        date = formatdate(self._clock.time(), usegmt=True).encode()
        self.state.default_headers[:] = [(b"date", date)]

    # -- the end ---------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        for handshake in self._handshakes:
            handshake.cancel()
        for connection in list(self.state.connections):
            connection.shutdown()
        await self._until_no_connections(self.limits.stop_seconds)
        for task in list(self.state.tasks):
            task.cancel()
        await self._until_no_connections(_LAST_WORDS_SECONDS)
        for connection in list(self.state.connections):
            connection.transport.abort()

    async def _until_no_connections(self, seconds: float) -> None:
        """Wait until every connection has ended, at most for `seconds`; keep watching their time."""
        watching = asyncio.create_task(self._watch(_LOOK_AT_STOP_SECONDS))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._none_open.wait()
        watching.cancel()

    def _warn(self, kind: str, sentence: str) -> None:
        held_back = self._throttle.admit(self._clock.monotonic(), kind)
        if held_back is not None:
            log.warning(sentence, action="connections-refused", kind=kind, held_back=held_back)


def _ours(connection: object) -> DoorConnection:
    """Return the connection with its type: the server's state contains only such connections."""
    assert isinstance(connection, DoorConnection)  # noqa: S101
    return connection


class Places:
    """Places for connections: a limit for all clients together, and one for each client.

    A client is an IPv4 address, or an IPv6 network of 64 bits, as providers assign them.
    """

    def __init__(self, most: int, most_per_client: int) -> None:
        self._most = most
        self._most_per_client = most_per_client
        self._taken: Counter[str] = Counter()
        self._all = 0

    def __len__(self) -> int:
        """Number of taken places."""
        return self._all

    def take(self, address: str | None) -> Refusal | None:
        """Take a place for a connection from this address, or return the reason why no place is free.

        None stands for the connection of a trusted proxy, whose client is not known yet.
        """
        if self._all >= self._most:
            return "all_taken"
        if address is not None and (refusal := self.name(address)):
            return refusal
        self._all += 1
        return None

    def name(self, address: str) -> Refusal | None:
        """Count a proxy's connection as this client's, or return the reason why the client may have no more."""
        client = network_of(address)
        if self._taken[client] >= self._most_per_client:
            return "client_has_too_many"
        self._taken[client] += 1
        return None

    def free(self, address: str | None) -> None:
        """Give a place back."""
        self._all -= 1
        if address is None:
            return
        client = network_of(address)
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]
