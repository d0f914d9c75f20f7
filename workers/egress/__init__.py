"""The egress guard: rules for the URLs and addresses that a job's text makes this process connect to.

Callbacks and source URLs come from jobs, so they must not open this network's internal services to anyone.
The guard checks the address that a socket is really connected to, for names and for literal addresses alike. A check of
the URL alone misses a name that resolves differently the second time. A check in the resolver misses literal addresses.

    urls        checks of a URL's text: scheme, user information, port, spelling of the host
    connector   resolver: checks every address of a name; one refused address refuses the whole name
                socket factory: checks the address about to be connected to
                peer: checks the address at the other end, after connecting and before the request is sent
    proxy       tunnels through the operator's HTTP proxy, to addresses that were checked before
    answers     bounds on a server's answers, and on a connection's age
    addresses   the public addresses
    policy      exceptions: allowed addresses that are not public, and public addresses that are denied
    settings    the operator's lists

URLs from the operator's own settings (search providers, remote engines) are trusted and not checked here.
"""

from workers.egress.addresses import SPECIAL_IPV4, SPECIAL_IPV6, Address, Network, is_public_address
from workers.egress.connector import Guard, GuardedConnector, reached_inside
from workers.egress.policy import (
    DEFAULT_PORTS,
    EgressPolicy,
    EgressRefused,
    Refusal,
    is_allowed,
    is_denied,
    is_listed,
    is_named,
)
from workers.egress.proxy import Proxy, ProxyFailed, bounded_connector
from workers.egress.settings import EgressSettings
from workers.egress.urls import check_reference, check_url, connected_host

__all__ = [
    "DEFAULT_PORTS",
    "SPECIAL_IPV4",
    "SPECIAL_IPV6",
    "Address",
    "EgressPolicy",
    "EgressRefused",
    "EgressSettings",
    "Guard",
    "GuardedConnector",
    "Network",
    "Proxy",
    "ProxyFailed",
    "Refusal",
    "bounded_connector",
    "check_reference",
    "check_url",
    "connected_host",
    "is_allowed",
    "is_denied",
    "is_listed",
    "is_named",
    "is_public_address",
    "reached_inside",
]
