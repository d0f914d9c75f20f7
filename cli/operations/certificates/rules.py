"""The rules of certificates: the errors, lifetimes, and names of leaves, servers, tenants and scopes.

CertificatesError           each text names the field or the file, the problem and the fix, and shows no key
├── InputRefused            a name, a tenant, a scope or a number of days
├── AuthorityUnusable       the authority's directory or a file in it
├── CertificateExists       a certificate of this name is valid already
└── CertificateUnknown      the authority has issued no such certificate

A client's tenant and scopes are URIs among its subject alternative names (RFC 5280, section 4.2.1.6), for example
`postback:tenant:acme` and `postback:scope:jobs:read`. Only the authority writes these URIs, so servers can trust them.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import idna
from cryptography import x509

from schemas.job import TENANT_PATTERN

AUTHORITY_DAYS = 3650
LEAF_DAYS = 90
CRL_DAYS = 180
"""Days from a revocation list to its next update. Operations that sign also sign an expiring list again, so renewals
every 90 days keep the list valid. If the list is overdue, no client certificate is accepted.
"""
MOST_DAYS = MappingProxyType({"authority": 7300, "server": 398, "client": 825, "crl": 3650})
"""Limits in days. Browsers accept a server's certificate only if it is valid for at most 398 days (CA/Browser Forum,
ballot SC31)."""

SKEW = timedelta(minutes=5)
"""The validity of certificates and lists begins this long before they are signed, so that a machine whose clock is slow
accepts them."""
_AUTHORITY_NOTICE = timedelta(days=180)
_SECOND = timedelta(seconds=1)
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""A leaf's name. The name becomes a common name, which has at most 64 characters (RFC 5280, appendix A.1), and file
names.
"""
SCOPE_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}"
TENANT_URI = "postback:tenant:"
SCOPE_URI = "postback:scope:"
MOST_SANS = 100
"""Limit on the number of names in one certificate, and on the number of scopes, because every handshake sends the whole
certificate."""

_RESERVED = frozenset({"ca", "crl", "index"})
_SERIAL = re.compile(r"(?:0[xX])?[0-9A-Fa-f]{16,40}")
_LONGEST_HOST = 253
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_HOST_FIX = "give a DNS name, *.example.com, or an IP address without port, brackets or zone"


class CertificatesError(Exception):
    """The base of this package's errors."""


class InputRefused(CertificatesError, ValueError):  # noqa: N818 - named after the refusal
    """An argument is wrong; nothing was changed."""


class AuthorityUnusable(CertificatesError):  # noqa: N818 - named after the problem
    """The authority's directory cannot be used as it is."""

    def __init__(self, path: Path, problem: str, fix: str) -> None:
        super().__init__(f"{path}: {problem}; {fix}")


class CertificateExists(CertificatesError):  # noqa: N818 - named after the certificate
    """A certificate or a file already has this name."""


class CertificateUnknown(CertificatesError):  # noqa: N818 - named after the certificate
    """No certificate that the operation applies to has this name or serial number."""


class State(StrEnum):
    """The state of a certificate, an authority or a revocation list at some time."""

    VALID = "valid"
    EXPIRING = "expiring"
    """The object is in the last third of its life, and should be renewed."""
    EXPIRED = "expired"
    REVOKED = "revoked"


def checked_days(option: str, days: int, kind: str) -> int:
    """Return the days if they are within the limit of this kind. Raises InputRefused."""
    if not 1 <= days <= MOST_DAYS[kind]:
        raise InputRefused(f"{option}: 1 to {MOST_DAYS[kind]} days, not {days}")
    return days


def validity(days: int, now: datetime, end: datetime | None = None) -> tuple[datetime, datetime]:
    """Return the first and the last second of a certificate for `days` days.

    The certificate ends with its authority at the latest. Both seconds belong to the lifetime (RFC 5280, section
    4.1.2.5).
    """
    begin = now.replace(microsecond=0) - SKEW
    last = begin + timedelta(days=days) - _SECOND
    return begin, last if end is None else min(last, end)


def state_at(now: datetime, begin: datetime, end: datetime, notice: timedelta | None = None) -> State:
    """Return the state of an object with this lifetime.

    By default, notice is given in the last third of the lifetime.
    """
    if end < now:
        return State.EXPIRED
    return State.EXPIRING if end - now <= (notice or (end - begin) / 3) else State.VALID


def authority_state(now: datetime, begin: datetime, end: datetime) -> State:
    """Return an authority's state.

    It is `EXPIRING` in the last half year, because its leaves must be replaced before its end.
    """
    return state_at(now, begin, end, min(_AUTHORITY_NOTICE, (end - begin) / 3))


def days_left(now: datetime, end: datetime) -> str:
    """Return the time to the end as text for people, such as `in 12 days` or `3 days ago`."""
    days = abs(end - now).days
    count = "less than a day" if days == 0 else "1 day" if days == 1 else f"{days} days"
    return f"{count} ago" if end < now else f"in {count}"


# -- names -----------------------------------------------------------------------------------------------------------


class ClientIdentity(NamedTuple):
    """The tenant and the scopes in a client's certificate."""

    tenant: str | None
    """The client's tenant; None if the certificate has no tenant, or several tenants."""
    scopes: frozenset[str]


def checked_name(name: str) -> str:
    """Return a leaf's name if it can be a file name and a common name. Raises InputRefused."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputRefused("NAME: use 1 to 64 letters, digits, `.`, `_` or `-`, the first a letter or a digit")
    if name.lower() in _RESERVED:
        raise InputRefused(f"NAME: the files of `{name}` would be the authority's own; choose another name")
    if _SERIAL.fullmatch(name):
        raise InputRefused("NAME: it looks like a serial number, which `revoke` also takes; choose another name")
    return name


def checked_authority_name(name: str) -> str:
    """Return an authority's name if it can be a common name. Raises InputRefused."""
    if not 1 <= len(name) <= 64 or not name.isprintable() or not name.strip():
        raise InputRefused("--name: use 1 to 64 printable characters")
    return name


def checked_tenant(tenant: str) -> str:
    """Return the tenant if it is a tenant's name. Raises InputRefused."""
    if not re.fullmatch(TENANT_PATTERN, tenant):
        raise InputRefused("--tenant: 1 to 63 letters, digits, `_` or `-`, a letter or digit first")
    return tenant


def checked_scopes(text: str) -> tuple[str, ...]:
    """Return the scopes of a list that commas or spaces separate, sorted. Raises InputRefused."""
    scopes = sorted(set(re.split(r"[,\s]+", text.strip(", \t\r\n"))) - {""})
    if len(scopes) > MOST_SANS or not all(re.fullmatch(SCOPE_PATTERN, scope) for scope in scopes):
        raise InputRefused(
            f"--scopes: at most {MOST_SANS} words of letters, digits, `.`, `_`, `:` or `-`, with commas between them"
        )
    return tuple(scopes)


def checked_san(text: str) -> str:
    """Return a server's name as `DNS:web.example` or `IP:192.0.2.1`, in one normal form. Raises InputRefused.

    The text may have the prefix already, as openssl and easy-rsa write it. A name beyond ASCII becomes its A-label
    (RFC 5891). A wildcard is the whole first label and has at least two labels after it: TLS libraries match no other
    wildcard.
    """
    kind, separator, rest = text.partition(":")
    prefix = kind.upper() if separator and kind.upper() in ("DNS", "IP") else ""
    value = rest if prefix else text
    if prefix != "DNS" and (address := _address(value)) is not None:
        return f"IP:{address}"
    host = _host(value) if prefix != "IP" else None
    if host is None:
        raise InputRefused(f"--san: {text[:80]!r} is no name of a server; {_HOST_FIX}")
    return f"DNS:{host}"


def identity_of(certificate: x509.Certificate) -> ClientIdentity:
    """Return the tenant and scopes in the certificate. URIs of any other form are ignored.

    Raises ValueError if the certificate's extensions do not follow RFC 5280.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ClientIdentity(None, frozenset())
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    tenants = [uri.removeprefix(TENANT_URI) for uri in uris if uri.startswith(TENANT_URI)]
    scopes = [uri.removeprefix(SCOPE_URI) for uri in uris if uri.startswith(SCOPE_URI)]
    valid = len(tenants) == 1 and re.fullmatch(TENANT_PATTERN, tenants[0])
    return ClientIdentity(
        tenants[0] if valid else None, frozenset(scope for scope in scopes if re.fullmatch(SCOPE_PATTERN, scope))
    )


def _address(text: str) -> str | None:
    if "%" in text:
        return None  # a zone, as in `fe80::1%eth0`, has a meaning on one machine only
    try:
        return str(ip_address(text))
    except ValueError:
        return None


def _host(text: str) -> str | None:
    """Return the DNS name in lower case and ASCII, or None if the text is not a DNS name."""
    wildcard, rest = text.startswith("*."), text.removeprefix("*.")
    host = rest.removesuffix(".").lower()
    if not host.isascii() or "xn--" in host:
        try:
            host = idna.encode(host, uts46=True, std3_rules=True).decode("ascii")
        except (idna.IDNAError, UnicodeError):
            return None
    labels = host.split(".")
    if not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit() or (wildcard and len(labels) < 2):
        return None
    host = f"*.{host}" if wildcard else host
    return host if len(host) <= _LONGEST_HOST else None
