"""The one door to the outside: which addresses and URLs other people's text may make us connect to.

Callbacks and source URLs come from jobs, so nothing that only this network can reach may be reached through them.
The rule is applied to the address that a socket is really connected to, for names and for literals alike: a check of
the URL alone is passed by a name that resolves differently the second time, a resolver hook is skipped for literals.

    urls        what the text of a URL shows already: scheme, user information, port, spelling of the host
    connector   resolver: every address of a name; one that is not allowed refuses the name as a whole
                socket factory: the address about to be connected to
                peer: the address at the other end, after connecting and before anything is sent
    answers     what a server may say on a connection, and how old that becomes
    addresses   which addresses are public
    policy      what is let through besides those, and what is not for all that
    settings    the operator's lists

URLs from the operator's own settings (search providers, remote engines) are trusted and do not come through here.
"""

from workers.egress.addresses import SPECIAL_IPV4, SPECIAL_IPV6, Address, Network, is_public_address
from workers.egress.answers import bounded_connector
from workers.egress.connector import Guard, GuardedConnector, guarded_connector
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
from workers.egress.settings import EgressSettings
from workers.egress.urls import check_reference, check_url

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
    "Refusal",
    "bounded_connector",
    "check_reference",
    "check_url",
    "guarded_connector",
    "is_allowed",
    "is_denied",
    "is_listed",
    "is_named",
    "is_public_address",
]
