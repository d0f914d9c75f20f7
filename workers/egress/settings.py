"""`POSTBACK_EGRESS__…`: the operator's lists of allowed and denied destinations."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, FilePath, model_validator
from pydantic_settings import BaseSettings, NoDecode

from schemas.settings import read_from
from workers.egress.addresses import Network
from workers.egress.policy import ANY_SUBDOMAIN, DEFAULT_PORTS, EgressPolicy
from workers.egress.proxy import Proxy, ProxyFailed, read_credentials

_LABEL: Final = r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?"
_NAME: Final = re.compile(rf"({_LABEL}\.)*(?=[a-z0-9_-]*[a-z]){_LABEL}")
"""A DNS name with a letter in its last label, because a host that ends in a number is an address in some spelling."""

_PROXY: Final = re.compile(
    r"http://(?:\[(?P<literal>[0-9A-Fa-f:.]+)\]|(?P<name>(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?))"
    r":(?P<port>[0-9]{1,5})/?"
)


def _items(value: str) -> list[str]:
    return [item.strip() for item in value.split(",") if item.strip()]


def _networks(value: object) -> object:
    return tuple(ip_network(item) for item in _items(value)) if isinstance(value, str) else value


def _names(value: object) -> object:
    return frozenset(_name(item) for item in _items(value)) if isinstance(value, str) else value


def _name(item: str) -> str:
    name = item.lower().removesuffix(".")
    if not _NAME.fullmatch(name.removeprefix(ANY_SUBDOMAIN)):
        raise ValueError("neither a name nor *. and a name; to allow addresses, list their networks")
    return name


def _networks_and_names(value: object) -> object:
    return tuple(map(_network_or_name, _items(value))) if isinstance(value, str) else value


def _network_or_name(item: str) -> Network | str:
    try:
        return ip_network(item)
    except ValueError:
        pass
    try:
        return _name(item)
    except ValueError:
        raise ValueError("neither a network (10.1.0.0/16), nor a name, nor *. and a name") from None


def _proxy(value: str) -> str:
    found = _PROXY.fullmatch(value)
    if found is None or int(found["port"]) not in range(1, 65536):
        raise ValueError("not http://HOST:PORT; user and password belong into POSTBACK_EGRESS__PROXY_CREDENTIALS")
    if found["literal"] is not None:
        ip_address(found["literal"])
    return value


def _ports(value: object) -> object:
    return frozenset(_items(value)) if isinstance(value, str) else value


Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)]
Names = Annotated[frozenset[str], NoDecode, BeforeValidator(_names)]
NetworksAndNames = Annotated[tuple[Network | str, ...], NoDecode, BeforeValidator(_networks_and_names)]
Ports = Annotated[frozenset[Annotated[int, Field(ge=1, le=65535)]], NoDecode, BeforeValidator(_ports)]


class EgressSettings(BaseSettings):
    """Lists of destinations. A destination that is allowed for callbacks is not thereby allowed for fetches."""

    model_config = read_from("POSTBACK_EGRESS__")

    allow_callbacks: Networks = ()
    """Comma-separated CIDRs that callbacks may reach although they are not public."""
    allow_callback_names: Names = frozenset()
    """Comma-separated hosts that callbacks may reach at any address. `*.example.com` means every subdomain, but not
    `example.com` itself."""
    allow_fetch: Networks = ()
    """Comma-separated CIDRs that source fetches may reach although they are not public."""
    allow_fetch_names: Names = frozenset()
    """Comma-separated hosts that source fetches may reach at any address. `*.example.com` means every subdomain, but
    not `example.com` itself."""
    ports: Ports = DEFAULT_PORTS
    """Comma-separated ports that callbacks and fetches may use at addresses and names outside the allow lists."""

    deny: NetworksAndNames = ()
    """Comma-separated CIDRs and hosts that callbacks and fetches never reach, even if another list allows them.
    `*.example.com` means every subdomain, but not `example.com` itself. The list is meant for public addresses that are
    used internally."""

    proxy: Annotated[str, AfterValidator(_proxy)] | None = None
    """`http://HOST:PORT` of an HTTP proxy. Workers fetch pages and search through it by CONNECT, on every port.

    The worker resolves the names, and the proxy gets addresses. Callbacks, engines, and sources of the kinds `sql` and
    `mcp` connect directly.
    """
    proxy_credentials: FilePath | None = None
    """A file with the line `user:password` for the proxy. Each connection reads the file again."""
    proxy_direct: NetworksAndNames = ()
    """Comma-separated CIDRs and hosts that pages and searches reach without the proxy. `*.example.com` means every
    subdomain, but not `example.com` itself."""

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if self.proxy_credentials is not None:
            try:
                read_credentials(self.proxy_credentials)
            except ProxyFailed as failed:
                raise ValueError(str(failed)) from None
        return self

    def fetch_proxy(self) -> Proxy | None:
        """Return the proxy for pages and searches; None without one."""
        found = _PROXY.fullmatch(self.proxy or "")
        if found is None:
            return None
        direct = _split(self.proxy_direct)
        host = found["literal"] or found["name"]
        return Proxy(host, int(found["port"]), self.proxy_credentials, EgressPolicy(*direct))

    def callback_policy(self, *, development: bool) -> EgressPolicy:
        """Return the policy for callbacks."""
        return self._policy(self.allow_callbacks, self.allow_callback_names, development=development)

    def fetch_policy(self, *, development: bool) -> EgressPolicy:
        """Return the policy for source fetches."""
        return self._policy(self.allow_fetch, self.allow_fetch_names, development=development)

    def _policy(self, allow: tuple[Network, ...], names: frozenset[str], *, development: bool) -> EgressPolicy:
        return EgressPolicy(allow, names, development, self.ports, *_split(self.deny))


def _split(mixed: tuple[Network | str, ...]) -> tuple[tuple[Network, ...], frozenset[str]]:
    """Return the networks and the names."""
    networks = tuple(one for one in mixed if not isinstance(one, str))
    return networks, frozenset(one for one in mixed if isinstance(one, str))
