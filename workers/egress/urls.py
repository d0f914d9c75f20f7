"""What the text of a URL shows already: scheme, user information, port, spelling of the host."""

from __future__ import annotations

import re
from typing import Final

from yarl import URL

from telemetry.logs import NO_ORIGIN, origin_of
from workers.egress.addresses import Address, parse
from workers.egress.policy import EgressPolicy, EgressRefused, Refusal, is_allowed, is_listed, is_named

_ENDS_IN_A_NUMBER: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?$")
"""Hosts that some resolver reads as an IPv4 address (WHATWG URL, "ends in a number")."""

_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?")


def check_url(url: str | URL, policy: EgressPolicy) -> URL:
    """The URL, if nothing in its text speaks against connecting. Where a name leads is seen when connecting.

    Raises EgressRefused.
    """
    parsed = _readable(url)
    if parsed.scheme not in ("http", "https"):
        raise refusal(Refusal.SCHEME, parsed)
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise refusal(Refusal.USERINFO, parsed)
    host = parsed.raw_host or ""
    address = _literal(parsed, host)
    if address is not None and not is_allowed(address, policy):
        raise refusal(Refusal.ADDRESS, parsed)
    named = is_named(host, policy)
    if address is None and is_localhost(host) and not (named or _allows_loopback(policy)):
        raise refusal(Refusal.ADDRESS, parsed)
    # A name may yet lead into an allowed network, where the next two rules do not hold.
    if not (is_listed(address, policy) if address is not None else named or policy.allow):
        check_scheme_and_port(parsed, policy)
    return parsed


def check_scheme_and_port(url: URL, policy: EgressPolicy) -> None:
    """What holds for every URL that does not lead into an allowed network. Raises EgressRefused."""
    if url.scheme != "https" and not policy.development:
        raise refusal(Refusal.SCHEME, url)
    if url.port not in policy.ports:
        raise refusal(Refusal.PORT, url)


def refusal(reason: Refusal, url: URL) -> EgressRefused:
    """The error to raise; it names the URL's origin."""
    return EgressRefused(reason, origin_of(str(url)))


def _readable(url: str | URL) -> URL:
    try:
        parsed = URL(url)
        parsed.port  # noqa: B018 - yarl finds some faults only when a part is asked for
    except (ValueError, TypeError):
        raise EgressRefused(Refusal.URL, NO_ORIGIN) from None
    return parsed


def _literal(url: URL, host: str) -> Address | None:
    """The address that the host spells; None for a name. Raises EgressRefused for what only looks like one of both."""
    if ":" in host or _ENDS_IN_A_NUMBER.search(host):
        address = parse(host)
        if address is None:
            raise refusal(Refusal.HOST, url)
        return address
    if not _HOST.fullmatch(host):
        raise EgressRefused(Refusal.URL, NO_ORIGIN)
    return None


def is_localhost(host: str) -> bool:
    """RFC 6761, section 6.3: these names are loopback whatever a resolver says."""
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def _allows_loopback(policy: EgressPolicy) -> bool:
    return is_listed("127.0.0.1", policy) or is_listed("::1", policy)
