"""Connections under a policy: the policy checks the address that a socket is really connected to."""

from __future__ import annotations

import socket
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from yarl import URL

from workers.egress.addresses import is_public_address
from workers.egress.answers import OneAnswerEach
from workers.egress.policy import EgressPolicy, Refusal, is_allowed, is_denied, is_listed, is_named
from workers.egress.proxy import ProxiedConnector, Proxy
from workers.egress.urls import check_reference, check_scheme_and_port, check_url, is_localhost, refusal

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import AddrInfoType, Connection
    from aiohttp.tracing import Trace

_REMEMBERED: Final = 4096
"""Number of passed checks that a connector caches, because a check costs more than a request over a warm connection."""

_named: ContextVar[bool] = ContextVar("named", default=False)
"""True if the policy names the host of this connection. The socket factory reads this, because it gets only the
address."""
_inside: ContextVar[bool] = ContextVar("inside", default=False)
"""True if the last connection of this task leads to an address that is not public."""


def reached_inside() -> bool:
    """True if the last answer that a guarded session gave this task came from an address that is not public."""
    return _inside.get()


class _AddressRefused(Exception):  # noqa: N818 - named after the event
    """An address was refused while its URL is unknown.

    This class is neither an OSError nor a RuntimeError, because aiohttp swallows those.
    """

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason)
        self.reason = reason


def _check_target(target: tuple[Any, ...], policy: EgressPolicy, *, named: bool) -> None:
    """Raise _AddressRefused if the policy refuses a socket address (host, port[, flow, scope]) or the scope is set."""
    address, port = target[0], target[1]
    if is_denied(address, policy):
        raise _AddressRefused(Refusal.DENIED)
    if any(target[3:]) or not (named or is_allowed(address, policy)):
        raise _AddressRefused(Refusal.ADDRESS)
    if port not in policy.ports and not (named or is_listed(address, policy)):
        raise _AddressRefused(Refusal.PORT)


def _check_reached(peer: tuple[Any, ...], url: URL, policy: EgressPolicy) -> bool:
    """Raise EgressRefused if the policy refuses the peer address of a connection for this URL.

    Returns True if the address is not public.
    """
    named = is_named(url.raw_host or "", policy)
    try:
        _check_target(peer, policy, named=named)
    except _AddressRefused as refused:
        raise refusal(refused.reason, url) from None
    if not (named or is_listed(peer[0], policy)):
        check_scheme_and_port(url, policy)
    return not is_public_address(peer[0])


class GuardedResolver(AbstractResolver):
    """Refuses a whole name if one of its addresses is refused, or if it has public and non-public addresses.

    A name with both kinds of addresses is treated as an attack. Only names that the operator has listed in the policy
    may have both.
    """

    def __init__(self, policy: EgressPolicy, resolver: AbstractResolver | None) -> None:
        self._policy = policy
        self._owned = resolver is None
        self._resolver = resolver or DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the name's addresses, or raise if the policy refuses one of them."""
        results = await self._resolver.resolve(host, port, family)
        named = is_named(host, self._policy)
        if is_localhost(host) and not named:
            # `localhost` has two addresses of this machine. If the policy allows only one address, skip the other.
            results = [result for result in results if is_allowed(result["host"], self._policy)] or results
        for result in results:
            _check_target((result["host"], port), self._policy, named=named)
        if not named and len({is_public_address(result["host"]) for result in results}) > 1:
            raise _AddressRefused(Refusal.MIXED)
        return results

    async def close(self) -> None:
        """Close the resolver, if this object made it."""
        if self._owned:
            await self._resolver.close()


class GuardedConnector(ProxiedConnector):
    """A connector that connects to allowed addresses only; made on a running loop.

    `connect` raises EgressRefused. EgressRefused is neither an `aiohttp.ClientError` nor an `OSError`, so a caller's
    handling of network errors does not swallow it by accident.
    """

    def __init__(
        self, policy: EgressPolicy, resolver: AbstractResolver | None, proxy: Proxy | None = None, **options: Any
    ) -> None:
        self._policy = policy
        self._guarded = GuardedResolver(policy, resolver)
        # The result of a check depends on its arguments alone. A refusal is an exception, which `lru_cache` does not
        # cache.
        self._check_url = lru_cache(_REMEMBERED)(partial(check_url, policy=policy))
        self._check_reached = lru_cache(_REMEMBERED)(partial(_check_reached, policy=policy))
        super().__init__(proxy, resolver=self._guarded, socket_factory=self.open_socket, **options)

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> Connection:
        """Return a connection after checking its peer. Raises EgressRefused and aiohttp's errors."""
        url = req.url
        self._check_url(url)
        if req.proxy:
            raise refusal(Refusal.PROXY, url)
        _named.set(is_named(url.raw_host or "", self._policy))
        try:
            connection = await super().connect(req, traces, timeout)
        except _AddressRefused as refused:
            raise refusal(refused.reason, url) from None
        try:
            self._check_peer(connection, url)
        except BaseException:
            connection.close()
            raise
        return connection

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Close all connections, and the resolver unless it was passed in."""
        await super().close(abort_ssl=abort_ssl)
        await self._guarded.close()

    def open_socket(self, addr_info: AddrInfoType) -> socket.socket:
        """Return a socket for the address about to be connected to, if the policy allows the address.

        The resolver must check a name's addresses first, because aiohttp swallows errors that are raised here when it
        tries several addresses at a time.
        """
        family, kind, protocol, _, target = addr_info
        _check_target(target, self._policy, named=_named.get())
        return socket.socket(family, kind, protocol)

    def _check_peer(self, connection: Connection, url: URL) -> None:
        transport, protocol = connection.transport, connection.protocol
        peer = transport.get_extra_info("peername") if transport is not None else None
        if peer is not None and isinstance(protocol, OneAnswerEach):
            peer = protocol.tunnelled_to or peer  # with a tunnel, the socket's own peer is the proxy
        if peer is None:
            raise aiohttp.ServerDisconnectedError
        _inside.set(self._check_reached(peer, url))


@dataclass(frozen=True, slots=True)
class Guard:
    """A policy, with connectors and sessions that enforce it."""

    policy: EgressPolicy
    resolver: AbstractResolver | None = None
    """The resolver of names; if None, the system's."""
    proxy: Proxy | None = None
    """The proxy that carries the connections; None connects directly."""

    def check_url(self, url: str | URL) -> URL:
        """See `check_url`. Raises EgressRefused."""
        return check_url(url, self.policy)

    def check_reference(self, base: URL, reference: str) -> URL:
        """See `check_reference`. Raises EgressRefused."""
        return check_reference(base, reference, self.policy)

    def connector(self, *, limit: int = 100, limit_per_host: int = 0) -> GuardedConnector:
        """Return a connector that enforces the policy for an `aiohttp.ClientSession`. Call this on a running loop.

        The limits count connections; 0 means no limit.
        """
        return GuardedConnector(self.policy, self.resolver, self.proxy, limit=limit, limit_per_host=limit_per_host)

    def session(self, *, limit: int = 100, limit_per_host: int = 0, **options: Any) -> aiohttp.ClientSession:
        """Return a guarded session that ignores cookies and the environment's proxies.

        `options` are ClientSession's.
        """
        options.setdefault("cookie_jar", aiohttp.DummyCookieJar())
        return aiohttp.ClientSession(
            connector=self.connector(limit=limit, limit_per_host=limit_per_host), trust_env=False, **options
        )
