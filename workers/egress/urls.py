"""What the text of a URL shows already: scheme, user information, port, spelling of the host."""

from __future__ import annotations

import re
from typing import Final

from yarl import URL

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
    origin = origin_of(parsed)
    if parsed.scheme not in ("http", "https"):
        raise EgressRefused(Refusal.SCHEME, origin)
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise EgressRefused(Refusal.USERINFO, origin)
    host = parsed.raw_host or ""
    address = _literal(host, origin)
    if address is not None and not is_allowed(address, policy):
        raise EgressRefused(Refusal.ADDRESS, origin)
    named = is_named(host, policy)
    if address is None and is_localhost(host) and not (named or _allows_loopback(policy)):
        raise EgressRefused(Refusal.ADDRESS, origin)
    # A name may yet lead into an allowed network, where the next two rules do not hold.
    if not (is_listed(address, policy) if address is not None else named or policy.allow):
        check_scheme_and_port(parsed, policy, origin)
    return parsed


def check_scheme_and_port(url: URL, policy: EgressPolicy, origin: str) -> None:
    """What holds for every URL that does not lead into an allowed network. Raises EgressRefused."""
    if url.scheme != "https" and not policy.development:
        raise EgressRefused(Refusal.SCHEME, origin)
    if url.port not in policy.ports:
        raise EgressRefused(Refusal.PORT, origin)


def _readable(url: str | URL) -> URL:
    try:
        parsed = URL(url)
        parsed.port  # noqa: B018 - yarl finds some faults only when a part is asked for
    except (ValueError, TypeError):
        raise EgressRefused(Refusal.URL, "a URL") from None
    return parsed


def origin_of(url: str | URL) -> str:
    """Scheme, host and port of a URL: all of it that may stand in a log, an error text or a note. Never raises."""
    try:
        parsed = URL(url)
        if parsed.raw_host and parsed.scheme:
            return str(parsed.origin())
        return f"{parsed.scheme}:" if parsed.scheme else "a URL"
    except (ValueError, TypeError):
        return "a URL"


def _literal(host: str, origin: str) -> Address | None:
    """The address that the host spells; None for a name. Raises EgressRefused for what only looks like one of both."""
    if ":" in host or _ENDS_IN_A_NUMBER.search(host):
        address = parse(host)
        if address is None:
            raise EgressRefused(Refusal.HOST, origin)
        return address
    if not _HOST.fullmatch(host):
        raise EgressRefused(Refusal.URL, "a URL")
    return None


def is_localhost(host: str) -> bool:
    """RFC 6761, section 6.3: these names are loopback whatever a resolver says."""
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def _allows_loopback(policy: EgressPolicy) -> bool:
    return is_listed("127.0.0.1", policy) or is_listed("::1", policy)
