"""Checks of a URL's text: scheme, user information, port, spelling of the host."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, urljoin, urlsplit

from yarl import URL

from telemetry.logs import NO_ORIGIN, origin_of
from workers.egress.addresses import Address, parse
from workers.egress.policy import EgressPolicy, EgressRefused, Refusal, is_allowed, is_denied, is_listed, is_named

_ENDS_IN_A_NUMBER: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?$")
"""Hosts that some resolvers read as an IPv4 address (WHATWG URL, "ends in a number")."""

_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?\.?")
_LABEL_LENGTHS: Final = range(1, 64)
"""Allowed lengths of a name's labels (RFC 1035, section 2.3.4). TLS cannot ask for a name with other lengths."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_UNWRITABLE: Final = re.compile(r"[^A-Za-z0-9._~:/?@!$&'()*+,;=%-]+|%(?![0-9A-Fa-f]{2})")
"""Text that a path or query must not contain (RFC 3986, sections 3.3 and 3.4), such as a % without two hex digits."""
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_BRACKETED: Final = re.compile(r"[^/?#]*//[^/?#]*\[")
"""A URL with a bracket in its authority. Only an IPv6 address may stand in brackets (RFC 3986, section 3.2.2)."""
_PARTS_USED: Final = ("raw_user", "raw_password", "raw_host", "host", "port", "raw_path_qs", "host_port_subcomponent")
"""Parts of a URL that this module, the connector or aiohttp's request reads."""


def check_url(url: str | URL, policy: EgressPolicy) -> URL:
    """Return the URL, unless the policy refuses its text. A name's addresses are checked later, when connecting.

    Scheme, host and port are normalised, so that the connection uses exactly the checked values. Path and query keep
    their spelling: servers tell `%3B` from `;` (RFC 3986, section 2.2), and signatures cover the spelling. Only
    characters that a request line must not contain are percent-encoded, as UTF-8. Raises only EgressRefused.
    """
    parsed = _readable(url)
    if parsed.scheme not in ("http", "https"):
        raise refusal(Refusal.SCHEME, parsed)
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise refusal(Refusal.USERINFO, parsed)
    host = parsed.raw_host or ""
    address = _literal(parsed, host)
    if is_denied(host, policy):
        raise refusal(Refusal.DENIED, parsed)
    if address is not None and not is_allowed(address, policy):
        raise refusal(Refusal.ADDRESS, parsed)
    named = is_named(host, policy)
    if address is None and is_localhost(host) and not (named or _allows_loopback(policy)):
        raise refusal(Refusal.ADDRESS, parsed)
    # A name may still resolve into an allowed network, where any scheme and port is allowed.
    if not (is_listed(address, policy) if address is not None else named or policy.allow):
        check_scheme_and_port(parsed, policy)
    return parsed


def check_reference(base: URL, reference: str, policy: EgressPolicy) -> URL:
    """Return a redirect's target (RFC 3986, section 5), unless the policy refuses its text. Raises EgressRefused."""
    if _SCHEME.match(reference) or _CONTROL.search(reference):
        return check_url(reference, policy)
    try:
        target = urljoin(str(base), reference)
    except ValueError:
        raise EgressRefused(Refusal.URL, NO_ORIGIN) from None
    return check_url(target, policy)


def check_scheme_and_port(url: URL, policy: EgressPolicy) -> None:
    """Check scheme and port of a URL that leads outside the allowed networks. Raises EgressRefused."""
    if url.scheme != "https" and not policy.development:
        raise refusal(Refusal.SCHEME, url)
    if url.port not in policy.ports:
        raise refusal(Refusal.PORT, url)


def refusal(reason: Refusal, url: URL) -> EgressRefused:
    """Return the error for this reason, with the URL's origin."""
    return EgressRefused(reason, origin_of(str(url)))


def _readable(url: str | URL) -> URL:
    """Return the URL after reading every part that is used later, because yarl reports some faults only on access.

    Raises EgressRefused.
    """
    try:
        parsed = url if isinstance(url, URL) else _spelled_plainly(url)
        for part in _PARTS_USED:
            getattr(parsed, part)  # yarl caches the value, so a later access cannot raise
        str(parsed)
    except (ValueError, TypeError, LookupError):  # yarl: IndexError for https://a[]@/
        raise EgressRefused(Refusal.URL, NO_ORIGIN) from None
    return parsed


def _spelled_plainly(text: str) -> URL:
    """Return the URL, normalised except for its path and query. Raises EgressRefused, ValueError and yarl's errors."""
    if _CONTROL.search(text):  # yarl would drop some control characters silently
        raise EgressRefused(Refusal.URL, NO_ORIGIN)
    plain, written = URL(text), URL(text, encoded=True)
    path, query = _quoted(written.raw_path), _quoted(written.raw_query_string)
    if not query and text.partition("#")[0].endswith("?"):
        path += "?"  # keeps an empty query, which yarl does not tell from a missing one
    spelled = URL.build(
        scheme=plain.scheme,
        authority=plain.raw_authority,
        path=path,
        query_string=query,
        fragment=plain.raw_fragment,
        encoded=True,
    )
    if _BRACKETED.match(text) and ":" not in (spelled.raw_host or ""):
        raise EgressRefused(Refusal.HOST, NO_ORIGIN)  # yarl drops the brackets, and reads [cafe.cc:80] as cafe.cc:80
    urlsplit(text).port  # noqa: B018 - refuses ":1_0", ":+1" and ":٣", which yarl reads as ports (RFC 3986, 3.2.3)
    return spelled


def _quoted(text: str) -> str:
    return _UNWRITABLE.sub(lambda found: quote(found[0], safe=""), text)


def _literal(url: URL, host: str) -> Address | None:
    """Return the address that the host spells; None for a name. Raises EgressRefused if the host is neither."""
    if ":" in host or _ENDS_IN_A_NUMBER.search(host):
        address = parse(host)
        if address is None:
            raise refusal(Refusal.HOST, url)
        return address
    labels = host.removesuffix(".").split(".")
    if not _HOST.fullmatch(host) or any(len(label) not in _LABEL_LENGTHS for label in labels):
        raise EgressRefused(Refusal.URL, NO_ORIGIN)
    return None


def is_localhost(host: str) -> bool:
    """True for `localhost` and names below it, which are always loopback (RFC 6761, section 6.3)."""
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def _allows_loopback(policy: EgressPolicy) -> bool:
    return is_listed("127.0.0.1", policy) or is_listed("::1", policy)


def connected_host(url: str) -> str:
    """Return the host that a connection to the URL uses: in lower case and IDNA, without brackets and a final dot.

    Raises EgressRefused for a URL that the guard refuses.
    """
    parsed = _readable(url)
    host = (parsed.raw_host or "").lower()
    if not host or parsed.raw_user is not None or parsed.raw_password is not None:
        raise refusal(Refusal.URL, parsed)
    address = _literal(parsed, host)
    return str(address) if address is not None else host.removesuffix(".")
