"""The one door to the outside: which addresses and URLs other people's text may make us connect to.

Callbacks and source URLs come from jobs, so nothing that only this network can reach may be reached through them.
The rule is applied to the address that a socket is really connected to, for names and for literals alike: a check of
the URL alone is passed by a name that resolves differently the second time, a resolver hook is skipped for literals.

    check_url      what the text of a URL shows already: scheme, user information, port, spelling of the host
    resolver       every address of a name; one that is not allowed refuses the name as a whole
    socket factory the address about to be connected to
    peer           the address at the other end, after connecting and before anything is sent

URLs from the operator's own settings (search providers, remote engines) are trusted and do not come through here.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Annotated, Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from pydantic import BeforeValidator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from yarl import URL

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import AddrInfoType, Connection
    from aiohttp.tracing import Trace

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

SPECIAL_IPV4: Final = (
    ("0.0.0.0/8", "This network, RFC 791"),
    ("10.0.0.0/8", "Private use, RFC 1918"),
    ("100.64.0.0/10", "Shared address space, RFC 6598; Alibaba's metadata service lies in it"),
    ("127.0.0.0/8", "Loopback, RFC 1122"),
    ("169.254.0.0/16", "Link local, RFC 3927; most metadata services lie in it"),
    ("172.16.0.0/12", "Private use, RFC 1918"),
    ("192.0.0.0/24", "IETF protocol assignments, RFC 6890; Oracle's metadata service lies in it"),
    ("192.0.2.0/24", "Documentation, RFC 5737"),
    ("192.31.196.0/24", "AS112-v4, RFC 7535"),
    ("192.52.193.0/24", "AMT, RFC 7450"),
    ("192.88.99.0/24", "6to4 relay anycast, deprecated, RFC 7526"),
    ("192.168.0.0/16", "Private use, RFC 1918"),
    ("192.175.48.0/24", "Direct delegation AS112 service, RFC 7534"),
    ("198.18.0.0/15", "Benchmarking, RFC 2544"),
    ("198.51.100.0/24", "Documentation, RFC 5737"),
    ("203.0.113.0/24", "Documentation, RFC 5737"),
    ("224.0.0.0/4", "Multicast, RFC 5771"),
    ("240.0.0.0/4", "Reserved, RFC 1112, and the limited broadcast, RFC 8190"),
    ("168.63.129.16/32", "Azure's host service, which answers inside every Azure network; in no registry"),
)
"""IANA's IPv4 Special-Purpose Address Registry (RFC 6890), multicast, and a host service in public space.

Every row is refused, whatever its column "globally reachable" says: that one means forwardable, and no row is a place
where somebody's web server lives.
"""

SPECIAL_IPV6: Final = (
    ("::/128", "Unspecified, RFC 4291"),
    ("::1/128", "Loopback, RFC 4291"),
    ("::/96", "IPv4-compatible, deprecated, RFC 4291"),
    ("64:ff9b:1::/48", "IPv4/IPv6 translation for local use, RFC 8215"),
    ("100::/64", "Discard only, RFC 6666"),
    ("100:0:0:1::/64", "Dummy prefix, RFC 9780"),
    ("2001::/23", "IETF protocol assignments, RFC 2928"),
    ("2001::/32", "Teredo, RFC 4380: server and client addresses inside"),
    ("2001:1::1/128", "Port Control Protocol anycast, RFC 7723"),
    ("2001:1::2/128", "TURN anycast, RFC 8155"),
    ("2001:1::3/128", "DNS-SD service registration anycast, RFC 9665"),
    ("2001:2::/48", "Benchmarking, RFC 5180"),
    ("2001:3::/32", "AMT, RFC 7450"),
    ("2001:4:112::/48", "AS112-v6, RFC 7535"),
    ("2001:10::/28", "ORCHID, deprecated, RFC 4843"),
    ("2001:20::/28", "ORCHIDv2, RFC 7343"),
    ("2001:30::/28", "Drone remote ID tags, RFC 9374"),
    ("2001:db8::/32", "Documentation, RFC 3849"),
    ("2002::/16", "6to4, RFC 3056: an IPv4 address inside"),
    ("2620:4f:8000::/48", "Direct delegation AS112 service, RFC 7534"),
    ("3fff::/20", "Documentation, RFC 9637"),
    ("5f00::/16", "Segment routing identifiers, RFC 9602"),
    ("fc00::/7", "Unique local, RFC 4193; Amazon's and Google's metadata services lie in it"),
    ("fe80::/10", "Link local, RFC 4291"),
    ("fec0::/10", "Site local, deprecated, RFC 3879"),
    ("ff00::/8", "Multicast, RFC 4291"),
)
"""IANA's IPv6 Special-Purpose Address Registry and the retired kinds; all refused, as above.

Two rows are not here because an IPv4 destination stands in them, and it decides: mapped (::ffff:0:0/96, RFC 4291) and
NAT64 (64:ff9b::/96, RFC 6052, which is how a network without IPv4 sees every IPv4 host).
"""

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
"""The only part of IPv6 from which IANA has handed out global unicast addresses (RFC 4291, section 2.5.4)."""

_NAT64: Final = IPv6Network("64:ff9b::/96")
_ISATAP_INTERFACES: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})
"""Upper half of an interface identifier whose lower half is an IPv4 address (RFC 5214, section 6.1)."""

_REFUSED_IPV4: Final = tuple(IPv4Network(cidr) for cidr, _ in SPECIAL_IPV4)
_REFUSED_IPV6: Final = tuple(IPv6Network(cidr) for cidr, _ in SPECIAL_IPV6)

DEFAULT_PORTS: Final = frozenset({80, 443, 8080, 8443})


class Refusal(StrEnum):
    """Why something was refused, as a phrase for people that is stable enough for programs."""

    URL = "not a URL that can be read"
    SCHEME = "https is required"
    USERINFO = "user information in a URL is not allowed"
    PORT = "this port is not allowed"
    HOST = "this spelling of an address is not allowed"
    ADDRESS = "the address is not public"
    PROXY = "a proxy would hide the address"


class EgressRefused(Exception):  # noqa: N818 - it names what happened, as the engines' EngineDied does
    """The guard refused to connect. The text names reason and origin only: no path, query, user or resolved address."""

    def __init__(self, reason: Refusal, origin: str) -> None:
        super().__init__(f"{origin}: {reason}")
        self.reason = reason
        self.origin = origin


class _AddressRefused(Exception):  # noqa: N818 - as above
    """An address was refused where no URL is known. Not an OSError or RuntimeError: aiohttp tries on after those."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What one kind of traffic may reach. Callbacks and fetches have one each."""

    allow: tuple[Network, ...] = ()
    """Addresses that are let through although they are not public; any port and plain http are fine there."""
    development: bool = False
    """Whether plain http to any public address is fine."""
    ports: frozenset[int] = DEFAULT_PORTS


def is_public_address(address: str | IPv4Address | IPv6Address) -> bool:
    """Whether this is the address of a host on the public Internet. Never raises.

    A string must be a dotted quad without leading zeros, or an address as RFC 4291 writes it: decimal, octal,
    hexadecimal and short spellings, brackets and zones are not public.
    """
    parsed = _parse(address)
    if parsed is None:
        return False
    plain = _unwrap(parsed)
    return _is_public_ipv4(plain) if isinstance(plain, IPv4Address) else _is_public_ipv6(plain)


def is_allowed(address: str | IPv4Address | IPv6Address, policy: EgressPolicy) -> bool:
    """Whether the policy lets traffic go to this address: it is public, or in one of the allowed networks."""
    return is_public_address(address) or is_listed(address, policy)


def is_listed(address: str | IPv4Address | IPv6Address, policy: EgressPolicy) -> bool:
    """Whether the address lies in one of the policy's allowed networks."""
    parsed = _parse(address)
    return parsed is not None and any(_unwrap(parsed) in network for network in policy.allow)


def _parse(address: object) -> Address | None:
    """The address without a zone; None for anything else. Integers and bytes are no addresses here."""
    if isinstance(address, IPv4Address):
        return address
    try:
        if isinstance(address, str):
            address = IPv6Address(address) if ":" in address else IPv4Address(address)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return None if address.scope_id is not None else address
    return address if isinstance(address, IPv4Address) else None


def _unwrap(address: Address) -> Address:
    """The IPv4 destination inside a mapped or NAT64 address; any other address as it is."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return _low_ipv4(address) if address in _NAT64 else address


def _low_ipv4(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFF_FFFF)


def _is_public_ipv4(address: IPv4Address) -> bool:
    return not any(address in network for network in _REFUSED_IPV4)


def _is_public_ipv6(address: IPv6Address) -> bool:
    if address not in _GLOBAL_UNICAST or any(address in network for network in _REFUSED_IPV6):
        return False
    interface = (int(address) >> 32) & 0xFFFF_FFFF
    return interface not in _ISATAP_INTERFACES or _is_public_ipv4(_low_ipv4(address))


_ENDS_IN_A_NUMBER: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?$")
"""Hosts that some resolver reads as an IPv4 address (WHATWG URL, "ends in a number")."""

_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?")


def check_url(url: str | URL, policy: EgressPolicy) -> URL:
    """The URL, if nothing in its text speaks against connecting. Where a name leads is seen when connecting.

    Raises EgressRefused.
    """
    parsed = _readable(url)
    origin = origin_of(parsed)
    if parsed.scheme not in ("http", "https"):
        raise EgressRefused(Refusal.SCHEME, origin)
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise EgressRefused(Refusal.USERINFO, origin)
    host = parsed.raw_host or ""
    address = _literal(host, origin)
    if address is not None and not is_allowed(address, policy):
        raise EgressRefused(Refusal.ADDRESS, origin)
    if address is None and _is_localhost(host) and not _allows_loopback(policy):
        raise EgressRefused(Refusal.ADDRESS, origin)
    # A name may yet lead into an allowed network, where the next two rules do not hold.
    if not (is_listed(address, policy) if address is not None else policy.allow):
        _check_scheme_and_port(parsed, policy, origin)
    return parsed


def _check_scheme_and_port(url: URL, policy: EgressPolicy, origin: str) -> None:
    if url.scheme != "https" and not policy.development:
        raise EgressRefused(Refusal.SCHEME, origin)
    if url.port not in policy.ports:
        raise EgressRefused(Refusal.PORT, origin)


def _readable(url: str | URL) -> URL:
    try:
        parsed = URL(url)
        parsed.port  # noqa: B018 - yarl finds some faults only when a part is asked for
    except (ValueError, TypeError):
        raise EgressRefused(Refusal.URL, "a URL") from None
    return parsed


def origin_of(url: str | URL) -> str:
    """Scheme, host and port of a URL: all of it that may stand in a log, an error text or a note. Never raises."""
    try:
        parsed = URL(url)
        if parsed.raw_host and parsed.scheme:
            return str(parsed.origin())
        return f"{parsed.scheme}:" if parsed.scheme else "a URL"
    except (ValueError, TypeError):
        return "a URL"


def _literal(host: str, origin: str) -> Address | None:
    """The address that the host spells; None for a name. Raises EgressRefused for what only looks like one of both."""
    if ":" in host or _ENDS_IN_A_NUMBER.search(host):
        address = _parse(host)
        if address is None:
            raise EgressRefused(Refusal.HOST, origin)
        return address
    if not _HOST.fullmatch(host):
        raise EgressRefused(Refusal.URL, "a URL")
    return None


def _is_localhost(host: str) -> bool:
    """RFC 6761, section 6.3: these names are loopback whatever a resolver says."""
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def _allows_loopback(policy: EgressPolicy) -> bool:
    return is_listed("127.0.0.1", policy) or is_listed("::1", policy)


def _check_target(target: tuple[Any, ...], policy: EgressPolicy) -> None:
    """Raise _AddressRefused for a socket address (host, port[, flow, scope]). A scope is a zone by another name."""
    address, port = target[0], target[1]
    if not is_allowed(address, policy) or any(target[3:]):
        raise _AddressRefused(Refusal.ADDRESS)
    if port not in policy.ports and not is_listed(address, policy):
        raise _AddressRefused(Refusal.PORT)


class _GuardedResolver(AbstractResolver):
    """Refuses a name as a whole when one of its addresses is refused: whoever mixes them is trying."""

    def __init__(self, policy: EgressPolicy, resolver: AbstractResolver | None) -> None:
        self._policy = policy
        self._owned = resolver is None
        self._resolver = resolver or DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        results = await self._resolver.resolve(host, port, family)
        for result in results:
            _check_target((result["host"], port), self._policy)
        return results

    async def close(self) -> None:
        if self._owned:
            await self._resolver.close()


class GuardedConnector(aiohttp.TCPConnector):
    """A connector that only connects to what the policy allows; made by `guarded_connector`, on a running loop.

    `connect` raises EgressRefused, which no caller's handling of network errors swallows by accident: it is no
    `aiohttp.ClientError` and no `OSError`.
    """

    def __init__(self, policy: EgressPolicy, resolver: AbstractResolver | None, **options: Any) -> None:
        self._policy = policy
        self._guarded = _GuardedResolver(policy, resolver)
        super().__init__(resolver=self._guarded, socket_factory=self._open_socket, **options)

    async def connect(
        self,
        req: ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> Connection:
        """A connection whose peer was checked. Raises EgressRefused, and what aiohttp raises."""
        check_url(req.url, self._policy)
        origin = origin_of(req.url)
        if req.proxy:
            raise EgressRefused(Refusal.PROXY, origin)
        try:
            connection = await super().connect(req, traces, timeout)
        except _AddressRefused as refused:
            raise EgressRefused(refused.reason, origin) from None
        try:
            self._check_peer(connection, req.url, origin)
        except BaseException:
            connection.close()
            raise
        return connection

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Close all connections, and the resolver unless it was passed in."""
        await super().close(abort_ssl=abort_ssl)
        await self._guarded.close()

    def _open_socket(self, addr_info: AddrInfoType) -> socket.socket:
        """A socket for the address that is about to be connected to.

        A name has been through the resolver by then. That has to stay so: aiohttp's race of several addresses swallows
        what is raised here.
        """
        family, kind, protocol, _, target = addr_info
        _check_target(target, self._policy)
        return socket.socket(family, kind, protocol)

    def _check_peer(self, connection: Connection, url: URL, origin: str) -> None:
        peer = connection.transport.get_extra_info("peername") if connection.transport is not None else None
        if peer is None:
            raise aiohttp.ServerDisconnectedError
        try:
            _check_target(peer, self._policy)
        except _AddressRefused as refused:
            raise EgressRefused(refused.reason, origin) from None
        if not is_listed(peer[0], self._policy):
            _check_scheme_and_port(url, self._policy, origin)


def guarded_connector(
    policy: EgressPolicy, *, limit: int = 100, limit_per_host: int = 0, resolver: AbstractResolver | None = None
) -> GuardedConnector:
    """A connector for an `aiohttp.ClientSession` that reaches only what the policy allows. Call on a running loop.

    `limit` and `limit_per_host` count connections, 0 is no limit. `resolver` answers names; the system's by default.
    """
    return GuardedConnector(policy, resolver, limit=limit, limit_per_host=limit_per_host)


@dataclass(frozen=True, slots=True)
class Guard:
    """A policy with the sessions that keep it."""

    policy: EgressPolicy
    resolver: AbstractResolver | None = None
    """Answers names; the system's where absent."""

    def check_url(self, url: str | URL) -> URL:
        """See `check_url`. Raises EgressRefused."""
        return check_url(url, self.policy)

    def connector(self, *, limit: int = 100, limit_per_host: int = 0) -> GuardedConnector:
        """See `guarded_connector`."""
        return guarded_connector(self.policy, limit=limit, limit_per_host=limit_per_host, resolver=self.resolver)

    def session(self, *, limit: int = 100, limit_per_host: int = 0, **options: Any) -> aiohttp.ClientSession:
        """A session behind the guard, without proxies from the environment and without cookies. See ClientSession."""
        options.setdefault("cookie_jar", aiohttp.DummyCookieJar())
        return aiohttp.ClientSession(
            connector=self.connector(limit=limit, limit_per_host=limit_per_host), trust_env=False, **options
        )


def _networks(value: object) -> object:
    if isinstance(value, str):
        return tuple(ip_network(item.strip()) for item in value.split(",") if item.strip())
    return value


Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)]


class EgressSettings(BaseSettings):
    """`POSTBACK_EGRESS__…`: two lists, so that an internal callback does not let jobs read the internal network."""

    model_config = SettingsConfigDict(
        env_prefix="POSTBACK_EGRESS__", extra="ignore", hide_input_in_errors=True, frozen=True
    )

    allow_callbacks: Networks = ()
    """Comma-separated CIDRs that callbacks may reach although they are not public."""
    allow_fetch: Networks = ()
    """Comma-separated CIDRs that source fetches may reach although they are not public."""

    def callback_policy(self, *, development: bool) -> EgressPolicy:
        """What callbacks may reach."""
        return EgressPolicy(allow=self.allow_callbacks, development=development)

    def fetch_policy(self, *, development: bool) -> EgressPolicy:
        """What source fetches may reach."""
        return EgressPolicy(allow=self.allow_fetch, development=development)
