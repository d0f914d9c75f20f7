"""The operator's HTTP proxy for pages and searches: tunnels by CONNECT (RFC 9110, section 9.3.6).

This process resolves each name itself, and asks the proxy for the address that the guard has checked. If the proxy
resolved the name again, the owner of the name could give it an internal address. So the proxy never learns a name.

Plain http also goes through a tunnel, because a proxy that forwards requests would choose the address by the `Host`
header.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import aiohttp
from aiohappyeyeballs import start_connection

from telemetry.clock import SystemClock
from telemetry.logs import get_logger
from telemetry.throttle import LogThrottle
from workers.egress.answers import OneAnswerEach, answer_once
from workers.egress.policy import EgressPolicy, is_listed, is_named

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import AddrInfoType

MAX_HEAD_BYTES: Final = 16 * 1024
"""Cap on the head of the proxy's answer."""
_MAX_CREDENTIALS_BYTES: Final = 4096
_CREDENTIALS: Final = re.compile(r"[^:\x00-\x1f\x7f]+:[^\x00-\x1f\x7f]*")
"""User and password (RFC 7617, section 2). The user's name must not contain a colon; the password may."""
_STATUS: Final = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_UNAUTHENTICATED: Final = frozenset({HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, HTTPStatus.UNAUTHORIZED})
"""Answers to wrong credentials. A proxy must answer 407 (RFC 9110, section 15.5.8), but tinyproxy answers 401."""
_REFUSALS: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED})
_SAY_SECONDS: Final = 60.0

log = get_logger()


class ProxyFailed(aiohttp.ClientConnectionError):
    """The proxy cannot be reached, refuses the credentials or the destination, or is no HTTP proxy.

    The text quotes no bytes of the proxy.
    """


class _Unreached(OSError):  # noqa: N818 - named after the event
    """The proxy could not reach the destination. The connector then tries another address of the name."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """The operator's proxy. The operator chose its address, so the guard does not check that address."""

    host: str
    port: int
    credentials: Path | None = None
    """A file with `user:password` on its only line. Each connection reads the file again, so the file may be
    replaced."""
    direct: EgressPolicy = field(default_factory=EgressPolicy)
    """The hosts (`allow` and `names`) that are connected to without the proxy."""
    _throttle: LogThrottle = field(default_factory=lambda: LogThrottle(_SAY_SECONDS), repr=False, compare=False)

    def carries(self, host: str, address: str) -> bool:
        """True if a connection to this host at this address goes through the proxy."""
        return not (is_named(host, self.direct) or is_listed(address, self.direct))

    async def tunnel(self, address: str, port: int) -> socket.socket:
        """Return a socket whose bytes the proxy carries to this address. Only the caller limits the time.

        Raises ProxyFailed, and OSError if the proxy could not reach the address.
        """
        try:
            request = self._request(address, port)
            connection = await self._connected()
            try:
                status = await _status(connection, request)
            except BaseException:
                connection.close()
                raise
            if HTTPStatus(200) <= status < HTTPStatus(300):  # any 2xx opens the tunnel
                return connection
            connection.close()
            raise _failure(status)
        except ProxyFailed as failed:
            self._tell(str(failed))
            raise

    async def _connected(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            return await start_connection(found, happy_eyeballs_delay=0.25, loop=loop)
        except OSError:
            raise ProxyFailed("the operator's proxy could not be reached") from None

    def _request(self, address: str, port: int) -> bytes:
        target = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.credentials is not None:
            basic = base64.b64encode(read_credentials(self.credentials).encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {basic}")
        return "\r\n".join([*lines, "", ""]).encode()

    def _tell(self, reason: str) -> None:
        if self._throttle.admit(SystemClock().monotonic(), reason) is not None:
            log.warning(
                "The egress proxy failed to open a tunnel; leaving the page or search out.",
                action="egress-proxy-failed",
                reason=reason,
                origin=f"http://{self.host}:{self.port}",
            )


def read_credentials(file: Path) -> str:
    """Return `user:password` from the file, without the end of the line. Raises ProxyFailed."""
    try:
        with file.open("rb") as opened:
            text = opened.read(_MAX_CREDENTIALS_BYTES + 1).decode().strip("\r\n")
    except (OSError, UnicodeDecodeError):
        raise ProxyFailed("the file with the credentials of the operator's proxy cannot be read") from None
    if len(text.encode()) > _MAX_CREDENTIALS_BYTES or not _CREDENTIALS.fullmatch(text):
        raise ProxyFailed("the file with the credentials of the operator's proxy is not one line user:password")
    return text


def status_in(head: bytes) -> int | None:
    """Return the status in the head of a proxy's answer; None for an incomplete head.

    Raises ProxyFailed if these bytes begin no HTTP/1 answer, or if bytes follow the head of a 2xx. A destination sends
    no byte before the worker's first byte, so such bytes come from the proxy.
    """
    end = _HEAD_END.search(head)
    if end is None:
        if len(head) > MAX_HEAD_BYTES:
            raise ProxyFailed("the operator's proxy gives an answer that is not HTTP")
        return None
    line = _STATUS.match(head)
    if line is None or (line[1].startswith(b"2") and end.end() < len(head)):
        raise ProxyFailed("the operator's proxy gives an answer that is not HTTP")
    return int(line[1])


async def _status(connection: socket.socket, request: bytes) -> int:
    loop, head = asyncio.get_running_loop(), b""
    try:
        await loop.sock_sendall(connection, request)
        while (status := status_in(head)) is None:
            part = await loop.sock_recv(connection, MAX_HEAD_BYTES)
            if not part:
                break
            head += part
    except OSError:
        status = None
    if status is None:
        raise ProxyFailed("the operator's proxy closed the connection")
    return status


def _failure(status: int) -> Exception:
    if status in _UNAUTHENTICATED:
        return ProxyFailed("the operator's proxy refuses the worker's credentials")
    if status in _REFUSALS:
        return ProxyFailed("the operator's proxy refuses this destination")
    return _Unreached(f"the operator's proxy answered {status}")


def bounded_connector(proxy: Proxy | None = None, **options: Any) -> ProxiedConnector:
    """A connector for an operator's service: any address is allowed, and every answer is bounded."""
    return ProxiedConnector(proxy, **options)


class ProxiedConnector(aiohttp.TCPConnector):
    """A connector that reaches its destinations through a proxy, or directly if there is no proxy.

    Every answer is bounded.
    """

    def __init__(self, proxy: Proxy | None, **options: Any) -> None:
        self._proxy = proxy
        super().__init__(**options)
        answer_once(self)

    async def _wrap_create_connection(
        self, *args: Any, addr_infos: list[AddrInfoType], req: ClientRequest, **options: Any
    ) -> tuple[asyncio.Transport, ResponseHandler]:
        """Connect to one of the addresses. aiohttp has resolved the name, with a resolver that checks addresses."""
        proxy, host = self._proxy, req.url.raw_host or ""
        direct = [info for info in addr_infos if proxy is None or not proxy.carries(host, str(info[4][0]))]
        if proxy is None or direct:
            return await super()._wrap_create_connection(*args, addr_infos=direct, req=req, **options)
        target, tunnel = await self._tunnel(proxy, addr_infos, req)
        transport, protocol = await self._wrap_existing_connection(*args, req=req, sock=tunnel, **options)
        cast(OneAnswerEach, protocol).tunnelled_to = target
        return transport, protocol

    async def _tunnel(
        self, proxy: Proxy, addr_infos: list[AddrInfoType], req: ClientRequest
    ) -> tuple[tuple[Any, ...], socket.socket]:
        """Return the first address that the proxy reaches, and the tunnel. Raises ProxyFailed and ClientError.

        Removes the addresses before the reached one, because after an error aiohttp calls this again with the remaining
        addresses.
        """
        unreached = OSError("the name has no address")
        while addr_infos:
            target = addr_infos[0][4]
            try:
                return target, await proxy.tunnel(str(target[0]), int(target[1]))
            except _Unreached as error:
                unreached = error
                del addr_infos[0]
        raise aiohttp.ClientConnectorError(req.connection_key, unreached)
