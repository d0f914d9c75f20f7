"""Checks that delivery can reach a callback URL: the guard's rules, the host's addresses, a connection to the port."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from operators.doctor.brokers import Address, probe
from operators.doctor.findings import Finding, fault
from schemas.settings import FleetSettings, read_settings

_ALLOW = "POSTBACK_EGRESS__ALLOW_CALLBACKS"


def check_callback(url: str, fleet: FleetSettings) -> Iterator[Finding]:
    """Yield the reasons why delivery would not reach a callback URL. Raises SettingsRefused."""
    from telemetry.logs import origin_of
    from workers.egress.policy import EgressRefused, is_allowed, is_named
    from workers.egress.settings import EgressSettings
    from workers.egress.urls import check_url

    policy = read_settings(EgressSettings).callback_policy(development=fleet.env == "development")
    origin = origin_of(url)
    try:
        parsed = check_url(url, policy)
    except EgressRefused as refused:
        yield fault(f"the guard refuses callbacks to {origin}: {refused.reason}", _fix(refused.reason.name))
        return
    host, port = parsed.raw_host or "", parsed.port or 443
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        yield fault(f"the name of {origin} does not resolve on this machine", "correct the URL, or this machine's DNS")
        return
    refused_addresses = sorted(each for each in found if not (is_named(host, policy) or is_allowed(each, policy)))
    if refused_addresses:
        yield fault(
            f"the guard refuses callbacks to {origin}: its address {refused_addresses[0]} is not allowed",
            f"if the address is yours, set {_ALLOW}={refused_addresses[0]} on workers and delivery",
        )
        return
    problems = [(each, problem) for each in sorted(found) if (problem := probe(Address(each, port))) is not None]
    if len(problems) == len(found):
        yield fault(f"{origin} cannot be reached: {problems[0][0]} {problems[0][1]}", "start it, or open the firewall")


def _fix(reason: str) -> str:
    fixes = {
        "ADDRESS": f"if the address is yours, add its network to {_ALLOW} on workers and delivery",
        "DENIED": "remove it from POSTBACK_EGRESS__DENY if that is wrong",
        "PORT": f"add the port to POSTBACK_EGRESS__PORTS, or the address to {_ALLOW}",
        "SCHEME": "give the callback an https URL; POSTBACK_ENV=development allows http for tests",
    }
    return fixes.get(reason, "give the callback a whole https URL with a host name")
