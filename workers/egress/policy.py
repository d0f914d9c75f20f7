"""The allowed destinations of one kind of traffic, and the reasons for a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from telemetry.logs import NO_ORIGIN
from workers.egress.addresses import Network, destinations, is_public_address, parse, unwrap

DEFAULT_PORTS: Final = frozenset({80, 443, 8080, 8443})

ANY_SUBDOMAIN: Final = "*."


class Refusal(StrEnum):
    """The reason for a refusal: a phrase for people, kept stable for programs."""

    URL = "not a URL that can be read"
    SCHEME = "https is required"
    USERINFO = "user information in a URL is not allowed"
    PORT = "this port is not allowed"
    HOST = "this spelling of an address is not allowed"
    ADDRESS = "the address is not public"
    DENIED = "the operator denies it"
    MIXED = "the name has public addresses and others"
    PROXY = "a proxy would hide the address"


class EgressRefused(Exception):  # noqa: N818 - named after the event, like the engines' EngineDied
    """The guard refused to connect. The text names only reason and origin, never path, query, user or address."""

    def __init__(self, reason: Refusal, origin: str) -> None:
        super().__init__(str(reason) if origin == NO_ORIGIN else f"{origin}: {reason}")
        self.reason = reason
        self.origin = origin


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """The allowed destinations of one kind of traffic. Callbacks and fetches have a policy each."""

    allow: tuple[Network, ...] = ()
    """Addresses that are allowed although they are not public, at any port and over plain http."""
    names: frozenset[str] = frozenset()
    """Hosts in lower case that are allowed at any address, as if all their addresses were in `allow`.

    `*.internal.example` stands for all names below `internal.example`. The policy trusts the owners of these names.
    """
    development: bool = False
    """True if plain http is allowed to any public address."""
    ports: frozenset[int] = DEFAULT_PORTS
    deny: tuple[Network, ...] = ()
    """Refused addresses. This list overrides the rule for public addresses, and the lists `allow` and `names`."""
    denied_names: frozenset[str] = frozenset()
    """Hosts that are refused at any address, in the form of `names`."""


def is_allowed(address: str | IPv4Address | IPv6Address, policy: EgressPolicy) -> bool:
    """True if the policy allows the address: public or in an allowed network, and not denied."""
    return not is_denied(address, policy) and (is_public_address(address) or is_listed(address, policy))


def is_denied(host: str | IPv4Address | IPv6Address, policy: EgressPolicy) -> bool:
    """True if the policy denies this host: its name, its address, or an IPv4 address inside its IPv6 address."""
    parsed = parse(host)
    if parsed is None:
        return isinstance(host, str) and _is_among(host, policy.denied_names)
    return any(one in network for network in policy.deny for one in destinations(parsed))


def is_listed(address: str | IPv4Address | IPv6Address, policy: EgressPolicy) -> bool:
    """True if the address lies in one of the policy's allowed networks."""
    if not policy.allow:
        return False
    parsed = parse(address)
    return parsed is not None and any(unwrap(parsed) in network for network in policy.allow)


def is_named(host: str, policy: EgressPolicy) -> bool:
    """True if the host is one of the policy's names, in upper or lower case, with or without a final dot.

    An address is never a name here; `is_listed` checks addresses.
    """
    return bool(policy.names) and parse(host) is None and _is_among(host, policy.names)


def _is_among(host: str, names: frozenset[str]) -> bool:
    name = host.lower().removesuffix(".")
    return name in names or any(name.endswith(listed[1:]) for listed in names if listed.startswith(ANY_SUBDOMAIN))
