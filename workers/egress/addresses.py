"""Public addresses by IANA's special-purpose registries, and the IPv6 addresses that contain an IPv4 address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

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
"""IANA's IPv4 Special-Purpose Address Registry (RFC 6890), multicast, and Azure's host service at its public address.

The guard refuses every row, even a "globally reachable" one. In IANA's table, "globally reachable" means only that
routers forward packets to the address. No row of the table contains a public web server.
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
"""IANA's IPv6 Special-Purpose Address Registry and retired networks; the guard refuses every row.

Two rows are left out, because the IPv4 address inside decides: mapped (::ffff:0:0/96, RFC 4291) and NAT64
(64:ff9b::/96, RFC 6052). Refusing all of NAT64 would cut off a network without IPv4, which reaches every IPv4 host by
NAT64.
"""

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
"""The only part of IPv6 from which IANA has handed out global unicast addresses (RFC 4291, section 2.5.4)."""

_NAT64: Final = IPv6Network("64:ff9b::/96")
_ISATAP_INTERFACES: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})
"""Upper halves of ISATAP interface identifiers; the lower half is an IPv4 address (RFC 5214, section 6.1)."""

_REFUSED_IPV4: Final = tuple(IPv4Network(cidr) for cidr, _ in SPECIAL_IPV4)
_REFUSED_IPV6: Final = tuple(IPv6Network(cidr) for cidr, _ in SPECIAL_IPV6)


def is_public_address(address: str | IPv4Address | IPv6Address) -> bool:
    """True if this is the address of a host on the public Internet. Never raises.

    A string must be a dotted quad without leading zeros, or an address as RFC 4291 writes it. Strings with decimal,
    octal, hexadecimal or short spellings, brackets or a zone do not count as public.
    """
    parsed = parse(address)
    if parsed is None:
        return False
    plain = unwrap(parsed)
    return _is_public_ipv4(plain) if isinstance(plain, IPv4Address) else _is_public_ipv6(plain)


def parse(address: object) -> Address | None:
    """Return the parsed address. None for an address with a zone, and for a value that is no text or address."""
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


def unwrap(address: Address) -> Address:
    """Return the IPv4 destination inside a mapped or NAT64 address, and any other address unchanged."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return _low_ipv4(address) if address in _NAT64 else address


def destinations(address: Address) -> tuple[Address, ...]:
    """Return the address and the IPv4 addresses inside it: all hosts that packets to the address may reach."""
    if isinstance(address, IPv4Address):
        return (address,)
    inside = [unwrap(address), address.sixtofour, *(address.teredo or ())]
    if _is_isatap(address):
        inside.append(_low_ipv4(address))
    return (address, *(one for one in inside if one is not None and one != address))


def _is_isatap(address: IPv6Address) -> bool:
    return (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP_INTERFACES


def _low_ipv4(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFF_FFFF)


def _is_public_ipv4(address: IPv4Address) -> bool:
    return not any(address in network for network in _REFUSED_IPV4)


def _is_public_ipv6(address: IPv6Address) -> bool:
    if address not in _GLOBAL_UNICAST or any(address in network for network in _REFUSED_IPV6):
        return False
    return not _is_isatap(address) or _is_public_ipv4(_low_ipv4(address))
