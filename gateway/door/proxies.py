"""The address of a client behind trusted proxies: the PROXY protocol on a connection, `X-Forwarded-For` in a request.

Only the proxies that the operator names are believed, since any client can send either.
Sources: HAProxy, "The PROXY protocol", versions 1 and 2; MDN, "X-Forwarded-For", selecting an address.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from gateway.door.settings import Network

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_LONGEST_V1 = 107
_V2 = 0x20
_PROXIED = 1
_ADDRESS_BYTES = {0x10: 4, 0x20: 16}
"""The number of bytes of an address in version 2, by the address family."""


class NoProxyHeader(Exception):  # noqa: N818 - it names what is missing
    """The connection does not begin with the PROXY protocol."""


class TrustedProxies:
    """The operator's proxies."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks
        self.trusts = lru_cache(4096)(self._trusts)
        """True for the address of a trusted proxy."""

    def client_of(self, peer: str, fields: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the last address of `X-Forwarded-For` that is no trusted proxy's; `peer` if there is none.

        Addresses before that one are the client's own words.
        """
        if not self.trusts(peer):
            return peer
        said = b",".join(value for name, value in fields if name == b"x-forwarded-for").decode("latin-1")
        for each in reversed(said.split(",")):
            try:
                address = str(ip_address(each.strip()))
            except ValueError:
                return peer
            if not self.trusts(address):
                return address
            peer = address
        return peer

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._networks)


async def read_proxy_header(connection: socket.socket) -> str | None:
    """Read the header at a connection's begin, and return the client's address; None if the proxy asks for itself.

    Raises NoProxyHeader and OSError.
    """
    begin = await _exactly(connection, len(_SIGNATURE))
    if begin == _SIGNATURE:
        return await _version_2(connection)
    line = bytearray(begin)
    while not line.endswith(b"\r\n"):
        if len(line) >= _LONGEST_V1:
            raise NoProxyHeader
        line += await _exactly(connection, 1)
    words = line.decode("latin-1").split()
    if words[:2] == ["PROXY", "UNKNOWN"]:
        return None
    if len(words) != 6 or words[0] != "PROXY" or words[1] not in ("TCP4", "TCP6"):
        raise NoProxyHeader
    try:
        return str(ip_address(words[2]))
    except ValueError:
        raise NoProxyHeader from None


async def _version_2(connection: socket.socket) -> str | None:
    command, family, *length = await _exactly(connection, 4)
    content = await _exactly(connection, int.from_bytes(bytes(length)))
    size = _ADDRESS_BYTES.get(family & 0xF0)
    if command & 0xF0 != _V2 or (size is not None and len(content) < size):
        raise NoProxyHeader
    if command & 0x0F != _PROXIED or size is None:
        return None
    return str(ip_address(content[:size]))


async def _exactly(connection: socket.socket, size: int) -> bytes:
    """Read no byte beyond the header, because the TLS handshake or the request follows it."""
    loop, found = asyncio.get_running_loop(), b""
    while len(found) < size:
        part = await loop.sock_recv(connection, size - len(found))
        if not part:
            raise NoProxyHeader
        found += part
    return found
