"""Places for connections: a limit for all clients together, and one for each client."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address
from typing import Literal

Refusal = Literal["all_taken", "client_has_too_many"]


class Places:
    """Counts open connections. A client is an IPv4 address, or an IPv6 network of 64 bits, as providers assign them."""

    def __init__(self, most: int, most_per_client: int) -> None:
        self._most = most
        self._most_per_client = most_per_client
        self._taken: Counter[str | bytes] = Counter()
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
        client = _client(address)
        if self._taken[client] >= self._most_per_client:
            return "client_has_too_many"
        self._taken[client] += 1
        return None

    def free(self, address: str | None) -> None:
        """Give a place back."""
        self._all -= 1
        if address is None:
            return
        client = _client(address)
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]


def _client(address: str) -> str | bytes:
    if ":" not in address:
        return address
    parsed = IPv6Address(address.partition("%")[0])
    return str(parsed.ipv4_mapped) if parsed.ipv4_mapped else parsed.packed[:8]
