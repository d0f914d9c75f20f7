"""The names in certificates: a leaf's own name, DNS names and IP addresses, a client's tenant and scopes.

A client's tenant and scopes are URIs among its subject alternative names (RFC 5280, section 4.2.1.6), for example
`postback:tenant:acme` and `postback:scope:jobs:read`. Only the authority writes these URIs, so servers can trust them.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import NamedTuple

import idna
from cryptography import x509
from cryptography.x509.oid import NameOID

from operators.certificates.errors import InputRefused
from schemas.job import TENANT_PATTERN

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
_LONGEST_COMMON_NAME = 64
_LONGEST_HOST = 253
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_HOST_FIX = "give a DNS name, *.example.com, or an IP address without port, brackets or zone"


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
    if not 1 <= len(name) <= _LONGEST_COMMON_NAME or not name.isprintable() or not name.strip():
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


def general_names(sans: tuple[str, ...], tenant: str | None, scopes: tuple[str, ...]) -> list[x509.GeneralName]:
    """Return the names, as `checked_san`, `checked_tenant` and `checked_scopes` return them, in X.509's form."""
    names: list[x509.GeneralName] = []
    for san in sans:
        kind, _, value = san.partition(":")
        names.append(x509.DNSName(value) if kind == "DNS" else x509.IPAddress(ip_address(value)))
    if tenant is not None:
        names.append(x509.UniformResourceIdentifier(f"{TENANT_URI}{tenant}"))
    names.extend(x509.UniformResourceIdentifier(f"{SCOPE_URI}{scope}") for scope in scopes)
    return names


def common_name(name: str) -> x509.Name:
    """Return a distinguished name with this common name only."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


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
