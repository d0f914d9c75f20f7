"""A name server on a real UDP socket, with answers that a test writes."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import cast

from aiohttp.resolver import AsyncResolver

_A, _AAAA, _INTERNET = 1, 28, 1
_ANSWERED = 0x8180
_NO_SUCH_NAME = 0x8183


@dataclass
class NameServer(asyncio.DatagramProtocol):
    """Answers each name with the next of its lists of addresses, and repeats the last. An empty list means NXDOMAIN.

    A name below `hung.example` is never answered. Answers have a TTL of 0.
    """

    answers: dict[str, list[list[str]]]
    asked: Counter[str] = field(default_factory=Counter)
    """Number of lookups of each name; a pair of IPv4 and IPv6 queries counts once."""
    port: int = 0
    _transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Cast, because asyncio's own datagram transport is not derived from DatagramTransport.
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, query: bytes, client: tuple[str, int]) -> None:
        name, kind, end = _question(query)
        if kind == _A:
            self.asked[name] += 1
        if name.endswith(".hung.example"):
            return
        addresses = self._addresses(name)
        flags = _ANSWERED if addresses else _NO_SUCH_NAME
        answers = [_record(address) for address in addresses if (_AAAA if ":" in address else _A) == kind]
        assert self._transport is not None
        head = query[:2] + struct.pack("!HHHHH", flags, 1, len(answers), 0, 0)
        self._transport.sendto(head + query[12:end] + b"".join(answers), client)

    def _addresses(self, name: str) -> Sequence[str]:
        lists = self.answers.get(name, [[]])
        return lists[max(0, min(self.asked[name], len(lists)) - 1)]

    def resolver(self) -> AsyncResolver:
        """aiohttp's default resolver, pointed at this server."""
        return AsyncResolver(nameservers=["127.0.0.1"], udp_port=self.port)


@asynccontextmanager
async def name_server(answers: dict[str, list[list[str]]]) -> AsyncIterator[NameServer]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(lambda: NameServer(answers), local_addr=("127.0.0.1", 0))
    try:
        yield server
    finally:
        transport.close()


def _question(query: bytes) -> tuple[str, int, int]:
    """The question's name, its record type, and its end in the query (RFC 1035, section 4.1.2)."""
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels).lower(), struct.unpack("!H", query[at + 1 : at + 3])[0], at + 5


def _record(address: str) -> bytes:
    """One answer (RFC 1035, section 4.1.3) for the name at offset 12."""
    packed = ip_address(address).packed
    kind = _A if len(packed) == 4 else _AAAA
    return struct.pack("!HHHIH", 0xC00C, kind, _INTERNET, 0, len(packed)) + packed
