"""A private certificate authority in a directory: certificates of servers and clients, renewal and revocation.

DIR (0700)
├── ca.key (0600)       the authority's private key
├── ca.pem              its certificate, which clients and servers trust
├── crl.pem             its revocation list, which servers read
├── index.json (0600)   all certificates that it issued
├── NAME.key (0600)     the private key of a leaf
└── NAME.pem            its newest certificate

An operation that signs locks the directory from its first read to its last write, so that no entry of the index is
lost. The index is written first, so that every certificate that is on the disk can be revoked. An operation that was
killed must be run again. An interrupted operation may leave the revocation list older than the index; the next
operation then signs the list again.

A client's tenant and scopes are URIs among its subject alternative names (RFC 5280, section 4.2.1.6), for example
`postback:tenant:acme` and `postback:scope:jobs:read`. Only the authority writes these URIs, so servers can trust them.

CertificatesError           each text names the field or the file, the problem and the fix, and shows no key
├── InputRefused            a name, a tenant, a scope or a number of days
├── AuthorityUnusable       the authority's directory or a file in it
├── CertificateExists       a certificate of this name is valid already
└── CertificateUnknown      the authority has issued no such certificate
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple, Self

import idna
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.job import TENANT_PATTERN
from telemetry.atomic_file import PrivateFileRefused, Replacement, only_writer, read_private, replace_files

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


def _checked_days(option: str, days: int, kind: str) -> int:
    """Return the days if they are within the limit of this kind. Raises InputRefused."""
    if not 1 <= days <= MOST_DAYS[kind]:
        raise InputRefused(f"{option}: 1 to {MOST_DAYS[kind]} days, not {days}")
    return days


def _validity(days: int, now: datetime, end: datetime | None = None) -> tuple[datetime, datetime]:
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


def _checked_name(name: str) -> str:
    """Return a leaf's name if it can be a file name and a common name. Raises InputRefused."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputRefused("NAME: use 1 to 64 letters, digits, `.`, `_` or `-`, the first a letter or a digit")
    if name.lower() in _RESERVED:
        raise InputRefused(f"NAME: the files of `{name}` would be the authority's own; choose another name")
    if _SERIAL.fullmatch(name):
        raise InputRefused("NAME: it looks like a serial number, which `revoke` also takes; choose another name")
    return name


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


# -- signing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority's certificate and the key that signs leaves and revocation lists."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def key_identifier(self) -> x509.AuthorityKeyIdentifier:
        """The extension by which leaves and revocation lists name the authority's key."""
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key on P-256, the curve that every TLS library supports and that signs fastest."""
    return ec.generate_private_key(ec.SECP256R1())


def new_authority(name: str, days: int, now: datetime) -> Authority:
    """Return a new authority that is valid for `days` from now.

    Its certificate may issue leaves only. It follows RFC 5280: path length 0, `keyCertSign` and `cRLSign`, subject key
    identifier.
    """
    key, subject = new_key(), _common_name(name)
    builder = _certificate(subject, subject, key.public_key(), key.public_key(), *_validity(days, now))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return Authority(builder.sign(key, SHA256()), key)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: CertificatePublicKeyTypes,
    issuer_key: ec.EllipticCurvePublicKey,
    begin: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    """Return what the certificates of authorities and of leaves have in common."""
    named = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), begin, end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(named, critical=False)
    )


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the private key in PEM (PKCS 8). The key is not encrypted, because the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _key_usage(*, signs_certificates: bool = False) -> x509.KeyUsage:
    """Return the key usage of an authority, to sign certificates and lists, or of a leaf, to sign handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(name: str) -> x509.Name:
    """Return a distinguished name with this common name only."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


# -- leaves ----------------------------------------------------------------------------------------------------------


class LeafKind(StrEnum):
    """The side of a connection that presents the certificate."""

    SERVER = "server"
    CLIENT = "client"


_USAGE = {LeafKind.SERVER: ExtendedKeyUsageOID.SERVER_AUTH, LeafKind.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH}


class Leaf(BaseModel):
    """The content of a server's or a client's certificate, besides its key and its lifetime."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    name: str = Field(pattern=f"^{NAME_PATTERN}$")
    """The common name, and the name of the files."""
    kind: LeafKind
    sans: tuple[str, ...] = ()
    """A server's names, each as `DNS:web.example` or `IP:192.0.2.1`."""
    tenant: str | None = None
    """A client's tenant."""
    scopes: tuple[str, ...] = ()
    """A client's scopes."""

    @classmethod
    def server(cls, name: str, sans: tuple[str, ...] = ()) -> Self:
        """Return a server's leaf.

        Without other names, the leaf's own name is also its DNS name or address. Raises InputRefused.
        """
        name = _checked_name(name)
        if len(sans) > MOST_SANS:
            raise InputRefused(f"--san: at most {MOST_SANS} names")
        return cls(name=name, kind=LeafKind.SERVER, sans=tuple(map(checked_san, sans or (name,))))

    @classmethod
    def client(cls, name: str, tenant: str, scopes: str = "") -> Self:
        """Return a leaf of a tenant's client, with scopes that commas or spaces separate. Raises InputRefused."""
        if not re.fullmatch(TENANT_PATTERN, tenant):
            raise InputRefused("--tenant: 1 to 63 letters, digits, `_` or `-`, a letter or digit first")
        return cls(name=_checked_name(name), kind=LeafKind.CLIENT, tenant=tenant, scopes=checked_scopes(scopes))


def sign_leaf(
    authority: Authority, leaf: Leaf, key: CertificatePublicKeyTypes, days: int, now: datetime
) -> x509.Certificate:
    """Return a certificate for the leaf and its public key, valid no longer than the authority's certificate."""
    own, signing_key = authority.certificate, authority.key
    begin, end = _validity(days, now, own.not_valid_after_utc)
    begin = max(begin, own.not_valid_before_utc)
    return (
        _certificate(_common_name(leaf.name), own.subject, key, signing_key.public_key(), begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGE[leaf.kind]]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(leaf)), critical=False)
        .sign(signing_key, SHA256())
    )


def serial_text(serial: int) -> str:
    """Return a serial number as openssl and Python's `getpeercert` print it: hexadecimal, two digits a byte."""
    return serial.to_bytes((serial.bit_length() + 7) // 8 or 1, "big").hex().upper()


def _general_names(leaf: Leaf) -> list[x509.GeneralName]:
    """Return the leaf's names, tenant and scopes in X.509's form."""
    names: list[x509.GeneralName] = []
    for san in leaf.sans:
        kind, _, value = san.partition(":")
        names.append(x509.DNSName(value) if kind == "DNS" else x509.IPAddress(ip_address(value)))
    uris = [f"{TENANT_URI}{leaf.tenant}"] if leaf.tenant is not None else []
    uris += [f"{SCOPE_URI}{scope}" for scope in leaf.scopes]
    return [*names, *map(x509.UniformResourceIdentifier, uris)]


# -- revocation lists (RFC 5280, section 5) --------------------------------------------------------------------------


class Reason(StrEnum):
    """Reasons for a revocation that apply to a leaf, as RFC 5280, section 5.3.1, and openssl name them."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"
    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"


class IssuedCertificate(Leaf):
    """A certificate that the authority issued."""

    serial: str = Field(pattern=r"^(?:[0-9A-F]{2})+$")
    """The serial number in hexadecimal digits, as `openssl x509 -serial` prints it."""
    days: int
    """The lifetime that was requested. The certificate's own lifetime is shorter if the authority ends earlier."""
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None = None
    reason: Reason | None = None

    def state(self, now: datetime) -> State:
        """Return the certificate's state."""
        return State.REVOKED if self.revoked_at is not None else state_at(now, self.not_before, self.not_after)

    def is_in_use(self, now: datetime) -> bool:
        """True if the certificate is neither expired nor revoked."""
        return self.state(now) in (State.VALID, State.EXPIRING)

    @property
    def leaf(self) -> Leaf:
        """The content of the certificate that a renewal copies: all but the key and the lifetime."""
        return Leaf.model_validate(self.model_dump(include=set(Leaf.model_fields)))


def sign_crl(
    authority: Authority, revoked: Iterable[IssuedCertificate], number: int, days: int, now: datetime
) -> x509.CertificateRevocationList:
    """Return a list with this CRL number, which names its next update `days` from now."""
    now = now.replace(microsecond=0)
    builder = (
        x509.CertificateRevocationListBuilder(authority.certificate.subject, now - SKEW, now + timedelta(days=days))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(authority.key_identifier, critical=False)
    )
    for one in revoked:
        builder = builder.add_revoked_certificate(_entry(one, one.revoked_at or now))
    return builder.sign(authority.key, SHA256())


def crl_number(crl: x509.CertificateRevocationList) -> int:
    """Return the list's CRL number, or -1 if it has none."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (x509.ExtensionNotFound, ValueError):
        return -1


def _entry(one: IssuedCertificate, at: datetime) -> x509.RevokedCertificate:
    """Return the list's entry. The reason `unspecified` is left out, as RFC 5280, section 5.3.1, asks."""
    builder = x509.RevokedCertificateBuilder(int(one.serial, 16), at)
    if one.reason not in (None, Reason.UNSPECIFIED):
        builder = builder.add_extension(x509.CRLReason(x509.ReasonFlags(one.reason)), critical=False)
    return builder.build()


# -- the index -------------------------------------------------------------------------------------------------------


AUTHORITY_NAME = "Postback CA"
_LARGEST_BYTES = 256 * 1024 * 1024
"""Limit on the size of a file. The index of a hundred thousand certificates has 40 MB."""
_BACKUP = "put the file back from a backup"
_SLOW_CLOCKS = timedelta(days=1)
_SEPARATORS = re.compile(r"[:\s]")


class Index(BaseModel):
    """The content of index.json."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    format: Literal[1] = 1
    crl_number: int = 0
    """The number of the newest revocation list."""
    crl_days: int = CRL_DAYS
    """The days from one list to its next update."""
    certificates: tuple[IssuedCertificate, ...] = ()
    """All certificates, the oldest first."""

    def of_name(self, name: str) -> list[IssuedCertificate]:
        """Return the certificates of a name, oldest first."""
        return [one for one in self.certificates if one.name == name]

    def of_serial(self, text: str) -> list[IssuedCertificate]:
        """Return the certificate with a serial number, in any common notation: with colons, lower case or `0x`."""
        digits = _SEPARATORS.sub("", text).upper().removeprefix("0X").lstrip("0")
        return [one for one in self.certificates if one.serial.lstrip("0") == digits]

    def revoked(self, now: datetime) -> Iterator[IssuedCertificate]:
        """Yield the certificates of a revocation list. A certificate that expired a day ago needs no entry.

        The day is for servers whose clocks are slow: to them the certificate has not expired yet.
        """
        for one in self.certificates:
            if one.revoked_at is not None and one.not_after + _SLOW_CLOCKS >= now:
                yield one


# -- the directory ---------------------------------------------------------------------------------------------------


def files_of(directory: Path, name: str) -> tuple[Path, Path]:
    """Return the files of a leaf's certificate and of its private key."""
    return directory / f"{name}.pem", directory / f"{name}.key"


@contextmanager
def _told(path: Path, fix: str | None = None) -> Iterator[None]:
    """Raise AuthorityUnusable for an error of the block about this path, with this fix or the error's own."""
    try:
        yield
    except PrivateFileRefused as refused:
        raise AuthorityUnusable(path, refused.problem, refused.fix) from None
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno is not None else "it cannot be used"
        is_absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        own = "make an authority with `postback certs init`" if is_absent else "let this user read and write it"
        raise AuthorityUnusable(path, reason, fix or own) from None


def _read(path: Path, *, private: bool = False, fix: str | None = None) -> bytes:
    with _told(path, fix):
        if private:
            content = read_private(path, _LARGEST_BYTES, by_root=True)
        else:
            with path.open("rb") as file:
                content = file.read(_LARGEST_BYTES + 1)
    if len(content) > _LARGEST_BYTES:
        raise AuthorityUnusable(path, "it is larger than any file of an authority", _BACKUP)
    return content


def _read_certificate(directory: Path) -> x509.Certificate:
    path = directory / "ca.pem"
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError:
        raise AuthorityUnusable(path, "it is no certificate in PEM", _BACKUP) from None


def _read_index(directory: Path) -> Index:
    path = directory / "index.json"
    try:
        return Index.model_validate_json(_read(path, private=True))
    except ValidationError as error:
        place = ".".join(map(str, error.errors(include_input=False)[0]["loc"])) or "the JSON"
        raise AuthorityUnusable(path, f"it is no index of certificates: {place}", _BACKUP) from None


def _read_crl(directory: Path) -> x509.CertificateRevocationList | None:
    """Return the revocation list, or None if there is none that can be read."""
    try:
        return x509.load_pem_x509_crl(_read(directory / "crl.pem"))
    except (ValueError, AuthorityUnusable):
        return None


def _read_key(path: Path, fix: str = _BACKUP) -> ec.EllipticCurvePrivateKey:
    content = _read(path, private=True, fix=None if fix is _BACKUP else fix)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError):
        raise AuthorityUnusable(path, "it is no private key in PEM, or has a passphrase", fix) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityUnusable(path, "it is no key on an elliptic curve", fix)
    return key


def _new_index(directory: Path, index: Index) -> Replacement:
    return Replacement(directory / "index.json", index.model_dump_json(indent=1).encode() + b"\n")


def _new_crl(directory: Path, crl: x509.CertificateRevocationList) -> Replacement:
    return Replacement(directory / "crl.pem", crl.public_bytes(Encoding.PEM), private=False)


def _new_pair(
    certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, directory: Path, name: str
) -> tuple[Replacement, Replacement]:
    """Return a key, and then its certificate: a killed command leaves no certificate without its key."""
    certificate_path, key_path = files_of(directory, name)
    content = certificate.public_bytes(Encoding.PEM)
    return Replacement(key_path, key_pem(key)), Replacement(certificate_path, content, private=False)


# -- operations ------------------------------------------------------------------------------------------------------


class Issued(NamedTuple):
    """A new certificate and its files."""

    entry: IssuedCertificate
    certificate: Path
    key: Path
    revoked: tuple[IssuedCertificate, ...] = ()
    """Certificates of the same name that the renewal revoked."""

    @property
    def is_shortened(self) -> bool:
        """True if the certificate has fewer days than requested, because it ends with its authority."""
        return (self.entry.not_after - self.entry.not_before).days < self.entry.days - 1


def init(
    directory: Path, now: datetime, name: str = AUTHORITY_NAME, days: int = AUTHORITY_DAYS, crl_days: int = CRL_DAYS
) -> Authority:
    """Make an authority in a new or empty directory. Raises CertificatesError.

    The certificate is written last. If it is missing, the other files are not an authority, and `init` may write them
    again.
    """
    if not 1 <= len(name) <= 64 or not name.isprintable() or not name.strip():
        raise InputRefused("--name: use 1 to 64 printable characters")
    days, index = (
        _checked_days("--days", days, "authority"),
        Index(crl_days=_checked_days("--crl-days", crl_days, "crl")),
    )
    authority = new_authority(name, days, now)
    crl = sign_crl(authority, (), index.crl_number, index.crl_days, now)
    with _told(directory, "choose another directory"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _told(directory), only_writer(directory):
        found = {path.name for path in directory.iterdir()}
        if found and not _is_interrupted(directory, found):
            problem = "it holds an authority already" if "ca.key" in found else "it is not empty"
            raise AuthorityUnusable(directory, problem, "choose an empty or a new directory")
        directory.chmod(0o700)
        pair = _new_pair(authority.certificate, authority.key, directory, "ca")
        replace_files(_new_index(directory, index), _new_crl(directory, crl), *pair)
    return authority


def _is_interrupted(directory: Path, found: set[str]) -> bool:
    """True if the files are those of an `init` that was interrupted before it wrote the last one, ca.pem."""
    if not found <= {"index.json", "crl.pem", "ca.key"} or "index.json" not in found:
        return False
    index = _read_index(directory)
    return not index.certificates and index.crl_number == 0


def issue(directory: Path, leaf: Leaf, now: datetime, days: int = LEAF_DAYS) -> Issued:
    """Issue a certificate with a new key. Raises CertificatesError, for example CertificateExists."""
    days = _checked_days("--days", days, leaf.kind)
    with _opened(directory, now) as opened:
        earlier = opened.index.of_name(leaf.name)
        for one in earlier:
            if one.is_in_use(now):
                raise CertificateExists(
                    f"{leaf.name} has a certificate until {_day(one.not_after)}; renew it or revoke it first"
                )
        for path in files_of(directory, leaf.name):
            if not earlier and path.exists():
                raise CertificateExists(f"{path} exists, and the authority did not make it; choose another name")
        return opened.sign(leaf, days, new_key())


def renew(
    directory: Path,
    name: str,
    now: datetime,
    days: int | None = None,
    *,
    keep_key: bool = False,
    revoke_old: bool = False,
) -> Issued:
    """Issue a certificate with the content of the newest certificate called `name`.

    The new certificate is valid for `days`, or by default for as many days as the newest one. Raises CertificatesError.
    Earlier certificates stay valid until their end unless `revoke_old` is true.
    """
    with _opened(directory, now) as opened:
        earlier = opened.index.of_name(name)
        if not earlier:
            raise CertificateUnknown(f"the authority has issued no certificate of the name {name!r}")
        newest = earlier[-1]
        if newest.revoked_at is not None:
            raise CertificateUnknown(f"{name} is revoked since {_day(newest.revoked_at)}; issue a new certificate")
        leaf = newest.leaf
        days = newest.days if days is None else _checked_days("--days", days, leaf.kind)
        key = _read_key(files_of(directory, name)[1], "renew with a new key") if keep_key else new_key()
        return opened.sign(leaf, days, key, tuple(one for one in earlier if one.is_in_use(now)) if revoke_old else ())


def revoke(
    directory: Path, name_or_serial: str, now: datetime, reason: Reason = Reason.UNSPECIFIED
) -> tuple[IssuedCertificate, ...]:
    """Revoke each certificate that is in use and has this name or this serial number.

    Raises CertificatesError. Returns the certificates that this call revoked: none if all were already revoked or
    expired.
    """
    with _opened(directory, now) as opened:
        found = opened.index.of_name(name_or_serial) or opened.index.of_serial(name_or_serial)
        if not found:
            raise CertificateUnknown(f"no certificate has the name or the serial number {name_or_serial[:80]!r}")
        revoked = tuple(one for one in found if one.is_in_use(now))
        if revoked:
            opened.revoke(revoked, reason)
        return revoked


def renew_crl(directory: Path, now: datetime, days: int | None = None) -> x509.CertificateRevocationList:
    """Sign the revocation list again, for as many days as before unless `days` is given. Raises CertificatesError."""
    days = None if days is None else _checked_days("--days", days, "crl")
    with _opened(directory, now) as opened:
        return opened.sign_list(days)


@contextmanager
def _opened(directory: Path, now: datetime) -> Iterator[_Opened]:
    """Keep the authority locked for an operation that signs, and sign its revocation list again if that is due.

    No other user may be able to read or replace the authority's key.
    """
    with _told(directory), only_writer(directory):
        if directory.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            fix = f"run `chmod 700 {directory}`"
            raise AuthorityUnusable(directory, "other users of this machine can replace its files", fix)
        certificate, key, index = _read_certificate(directory), _read_key(directory / "ca.key"), _read_index(directory)
        if certificate.public_key() != key.public_key():
            raise AuthorityUnusable(directory / "ca.key", "the key is not the certificate's", _BACKUP)
        if certificate.not_valid_after_utc < now:
            problem = f"the authority expired on {_day(certificate.not_valid_after_utc)}"
            raise AuthorityUnusable(directory, problem, "make a new one with `postback certs init` elsewhere")
        is_due = crl_problem(_read_crl(directory), index, now) is not None
        opened = _Opened(directory, now, Authority(certificate, key), index, is_due)
        yield opened
        if opened.crl_is_due:
            opened.sign_list()


@dataclass(slots=True)
class _Opened:
    """An authority whose directory is locked for writing."""

    directory: Path
    now: datetime
    authority: Authority
    index: Index
    crl_is_due: bool

    def sign(
        self, leaf: Leaf, days: int, key: ec.EllipticCurvePrivateKey, old: tuple[IssuedCertificate, ...] = ()
    ) -> Issued:
        """Sign a certificate for the key, revoke old ones, and write all files."""
        certificate = sign_leaf(self.authority, leaf, key.public_key(), days, self.now)
        entry = IssuedCertificate(
            **leaf.model_dump(),
            serial=serial_text(certificate.serial_number),
            days=days,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
        self.index = self.index.model_copy(update={"certificates": (*self.index.certificates, entry)})
        written = _new_pair(certificate, key, self.directory, leaf.name)
        if old or self.crl_is_due:
            self.revoke(old, Reason.SUPERSEDED, *written)
        else:
            replace_files(_new_index(self.directory, self.index), *written)
        return Issued(entry, written[1].path, written[0].path, old)

    def revoke(self, certificates: tuple[IssuedCertificate, ...], reason: Reason, *written: Replacement) -> None:
        """Revoke certificates in a new list, and write the list and further files."""
        serials = {one.serial for one in certificates}
        revoked = {"revoked_at": self.now.replace(microsecond=0), "reason": reason}
        entries = (one.model_copy(update=revoked) if one.serial in serials else one for one in self.index.certificates)
        self.index = self.index.model_copy(update={"certificates": tuple(entries)})
        self.sign_list(None, *written)

    def sign_list(self, days: int | None = None, *written: Replacement) -> x509.CertificateRevocationList:
        """Sign a new revocation list, and write it with the index and further files."""
        number, days = self.index.crl_number + 1, days or self.index.crl_days
        self.index = self.index.model_copy(update={"crl_number": number, "crl_days": days})
        self.crl_is_due = False
        crl = sign_crl(self.authority, self.index.revoked(self.now), number, days, self.now)
        replace_files(_new_index(self.directory, self.index), _new_crl(self.directory, crl), *written)
        return crl


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d}"


# -- warnings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contents:
    """The public content of an authority's directory."""

    authority: x509.Certificate
    index: Index
    crl: x509.CertificateRevocationList | None
    """The revocation list; None if the list is missing or cannot be read."""


def contents(directory: Path) -> Contents:
    """Return the directory's public content, without its lock and its key. Raises AuthorityUnusable."""
    return Contents(_read_certificate(directory), _read_index(directory), _read_crl(directory))


def crl_problem(crl: x509.CertificateRevocationList | None, index: Index, now: datetime) -> str | None:
    """Return the reason why the revocation list must be signed again; None if the list is good."""
    if crl is None:
        return "the revocation list is missing or unreadable, and a gateway needs it to start"
    if crl_number(crl) != index.crl_number:
        return "the revocation list is not the index's newest, as after an interrupted command"
    end = crl.next_update_utc
    if end is None or end < now:
        return "the revocation list is past its next update, and the gateway refuses every client certificate"
    if state_at(now, crl.last_update_utc, end) is State.EXPIRING:
        return f"the revocation list's next update is due {days_left(now, end)}"
    return None


def warnings_of(contents: Contents, directory: Path, now: datetime) -> Iterator[str]:
    """Yield the warnings about an authority's directory at this time.

    If a name has several certificates, only the newest one can cause a warning.
    """
    certificate, where = contents.authority, shlex.quote(str(directory))
    end = certificate.not_valid_after_utc
    state = authority_state(now, certificate.not_valid_before_utc, end)
    if state is not State.VALID:
        verb = "expired" if state is State.EXPIRED else "expires"
        yield (
            f"the authority {verb} {days_left(now, end)}: make a new one with `postback certs init` in another "
            "directory, and replace every certificate"
        )
    if state is State.EXPIRED:
        return  # an expired authority can sign no list and no certificate
    if (problem := crl_problem(contents.crl, contents.index, now)) is not None:
        yield f"{problem}: sign it again with `postback certs crl {where}`"
    newest_of = {one.name: one for one in contents.index.certificates}
    for name, newest in newest_of.items():
        if (state := newest.state(now)) in (State.EXPIRED, State.EXPIRING):
            verb = "expired" if state is State.EXPIRED else "expires"
            yield f"{name} {verb} {days_left(now, newest.not_after)}: `postback certs renew {where} {name}`"
