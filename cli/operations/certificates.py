"""A private certificate authority in a directory: certificates of servers and clients, renewal and revocation.

DIR (0700)
├── ca.key (0600)       the authority's private key
├── ca.pem              its certificate, which clients and servers trust
├── crl.pem             its revocation list, which servers read
├── NAME.key (0600)     the private key of a leaf
├── NAME.pem            its newest certificate
└── issued/SERIAL.pem   each certificate that the authority issued

An operation that signs locks the directory from its first read to its last write. A certificate's copy in `issued` is
written first, so that every certificate that is on the disk can be revoked. An operation that was killed must be run
again.

A client's tenant and scopes are URIs among its subject alternative names (RFC 5280, section 4.2.1.6), for example
`postback:tenant:acme` and `postback:scope:jobs:read`. Only the authority writes these URIs, so servers can trust them.

CertificatesError       each text names the field or the file, the problem and the fix, and shows no key
└── InputRefused        a name or a tenant
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from schemas.job import TENANT_PATTERN
from schemas.operator_error import OperatorError
from telemetry.atomic_file import PrivateFileRefused, Replacement, only_writer, read_private, replace_files

Parsed = TypeVar("Parsed")

AUTHORITY_NAME = "Postback CA"
AUTHORITY_DAYS = 3650
LEAF_DAYS = 90
SKEW = timedelta(minutes=5)
"""The validity of certificates and lists begins this long before they are signed, so that a machine whose clock is slow
accepts them."""
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""A leaf's name. The name becomes a common name, which has at most 64 characters (RFC 5280, appendix A.1), and file
names.
"""
TENANT_URI = "postback:tenant:"
SCOPE_URI = "postback:scope:"
_MOST_NOTICE = timedelta(days=180)
_SECOND = timedelta(seconds=1)
_RESERVED = frozenset({"ca", "crl"})
_LONGEST_HOST = 253
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:\*\.(?=[^.]+\.))?(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}", re.ASCII | re.IGNORECASE)
"""A DNS name, perhaps with a wildcard before at least two labels: TLS libraries match no other wildcard, and compare a
name whose last label is a number with IP addresses only."""
_LARGEST_KEY_BYTES = 64 * 1024
_BACKUP = "put the file back from a backup"


class CertificatesError(OperatorError):
    """The operation cannot be done; the text says why."""


class InputRefused(CertificatesError, ValueError):  # noqa: N818 - named after the refusal
    """An argument is wrong; nothing was changed."""

    exit_status = 2


class State(StrEnum):
    """The state of a certificate or a revocation list at some time."""

    VALID = "valid"
    EXPIRING = "expiring"
    """The object is in the last third of its life and in its last half year, and should be renewed."""
    EXPIRED = "expired"
    REVOKED = "revoked"


def state_at(now: datetime, begin: datetime, end: datetime) -> State:
    """Return the state of an object with this lifetime."""
    if end < now:
        return State.EXPIRED
    return State.EXPIRING if end - now <= min((end - begin) / 3, _MOST_NOTICE) else State.VALID


# -- names -----------------------------------------------------------------------------------------------------------


class LeafKind(StrEnum):
    """The side of a connection that presents the certificate."""

    SERVER = "server"
    CLIENT = "client"


_USAGE = {LeafKind.SERVER: ExtendedKeyUsageOID.SERVER_AUTH, LeafKind.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH}


@dataclass(frozen=True, slots=True)
class Leaf:
    """The content of a server's or a client's certificate, besides its key and its lifetime."""

    name: str
    """The common name, and the name of the files."""
    kind: LeafKind
    names: x509.SubjectAlternativeName
    """A server's names; a client's tenant and scopes."""

    @classmethod
    def server(cls, name: str, sans: Iterable[str] = ()) -> Self:
        """Return a server's leaf.

        Without other names, the leaf's own name is also its DNS name or address. Raises InputRefused.
        """
        name = _checked_name(name)
        names = x509.SubjectAlternativeName(map(_general_name, tuple(sans) or (name,)))
        return cls(name, LeafKind.SERVER, names)

    @classmethod
    def client(cls, name: str, tenant: str, scopes: Iterable[str] = ()) -> Self:
        """Return a leaf of a tenant's client. Raises InputRefused."""
        if not re.fullmatch(TENANT_PATTERN, tenant):
            raise InputRefused("--tenant: 1 to 63 letters, digits, `_` or `-`, a letter or digit first")
        uris = [f"{TENANT_URI}{tenant}", *(f"{SCOPE_URI}{scope}" for scope in sorted(set(scopes)))]
        names = x509.SubjectAlternativeName(map(x509.UniformResourceIdentifier, uris))
        return cls(_checked_name(name), LeafKind.CLIENT, names)

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        """Return the content of a certificate that an authority issued. Raises ValueError and ExtensionNotFound."""
        extensions = certificate.extensions
        is_server = _USAGE[LeafKind.SERVER] in extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        [common_name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return cls(str(common_name.value), LeafKind.SERVER if is_server else LeafKind.CLIENT, names)

    @property
    def sans(self) -> list[str]:
        """A server's DNS names and IP addresses."""
        return _server_names(self.names)


class ClientIdentity(NamedTuple):
    """The tenant and the scopes in a client's certificate."""

    tenant: str | None
    """The client's tenant; None if the certificate has no tenant, or several tenants."""
    scopes: frozenset[str]


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
    valid = len(tenants) == 1 and re.fullmatch(TENANT_PATTERN, tenants[0])
    scopes = frozenset(uri.removeprefix(SCOPE_URI) for uri in uris if uri.startswith(SCOPE_URI))
    return ClientIdentity(tenants[0] if valid else None, scopes)


def server_names(certificate: x509.Certificate) -> list[str]:
    """Return the DNS names and IP addresses of a server's certificate; none if its extensions cannot be read."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return _server_names(names)


def _server_names(names: x509.SubjectAlternativeName) -> list[str]:
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def is_named_in(host: str, names: Iterable[str]) -> bool:
    """Return whether a client that asks for `host` accepts a certificate for these names (RFC 9525, section 6)."""
    host = host.lower().removesuffix(".")
    rest = host.partition(".")[2]
    return any(name.lower() in (host, f"*.{rest}" if rest else host) for name in names)


def serial_text(serial: int) -> str:
    """Return a serial number as openssl and Python's `getpeercert` print it: hexadecimal, two digits a byte."""
    return serial.to_bytes((serial.bit_length() + 7) // 8 or 1, "big").hex().upper()


def _checked_name(name: str) -> str:
    """Return a leaf's name if it can be a file name and a common name. Raises InputRefused."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputRefused("NAME: use 1 to 64 letters, digits, `.`, `_` or `-`, the first a letter or a digit")
    if name.lower() in _RESERVED:
        raise InputRefused(f"NAME: the files of `{name}` would be the authority's own; choose another name")
    return name


def _general_name(text: str) -> x509.GeneralName:
    """Return a server's DNS name or IP address. Raises InputRefused."""
    try:
        if "%" not in text:  # a zone, as in `fe80::1%eth0`, has a meaning on one machine only
            return x509.IPAddress(ip_address(text))
    except ValueError:
        pass
    if not _HOST.fullmatch(text) or len(text) > _LONGEST_HOST:
        fix = "give a DNS name in ASCII, *.example.com, or an IP address without port, brackets or zone"
        raise InputRefused(f"--san: {text[:80]!r} is no name of a server; {fix}")
    return x509.DNSName(text.lower())


# -- signing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority's certificate and the key that signs leaves and revocation lists."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key on P-256, the curve that every TLS library supports and that signs fastest."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the private key in PEM (PKCS 8). The key is not encrypted, because the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def new_authority(name: str, days: int, now: datetime) -> Authority:
    """Return a new authority that is valid for `days` from now.

    Its certificate may issue leaves only. It follows RFC 5280: path length 0, `keyCertSign` and `cRLSign`, subject key
    identifier.
    """
    key, subject, begin = new_key(), _common_name(name), now.replace(microsecond=0) - SKEW
    end = begin + timedelta(days=days) - _SECOND
    builder = _certificate(subject, subject, key.public_key(), key, begin, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return Authority(builder.sign(key, SHA256()), key)


def sign_leaf(
    authority: Authority, leaf: Leaf, key: CertificatePublicKeyTypes, days: int, now: datetime
) -> x509.Certificate:
    """Return a certificate for the leaf and its public key, valid no longer than the authority's certificate.

    Its first and its last second belong to the lifetime (RFC 5280, section 4.1.2.5).
    """
    own, begin = authority.certificate, now.replace(microsecond=0) - SKEW
    end = min(begin + timedelta(days=days) - _SECOND, own.not_valid_after_utc)
    begin = max(begin, own.not_valid_before_utc)
    return (
        _certificate(_common_name(leaf.name), own.subject, key, authority.key, begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGE[leaf.kind]]), critical=False)
        .add_extension(leaf.names, critical=False)
        .sign(authority.key, SHA256())
    )


def sign_crl(
    authority: Authority, revoked: Iterable[x509.RevokedCertificate], number: int, now: datetime, end: datetime
) -> x509.CertificateRevocationList:
    """Return a revocation list with this CRL number and these entries, whose next update is due at `end`."""
    named = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        x509.CertificateRevocationListBuilder(authority.certificate.subject, now.replace(microsecond=0) - SKEW, end)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(named, critical=False)
    )
    for entry in revoked:
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(authority.key, SHA256())


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: CertificatePublicKeyTypes,
    issuer_key: ec.EllipticCurvePrivateKey,
    begin: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    """Return what the certificates of authorities and of leaves have in common."""
    named = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), begin, end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(named, critical=False)
    )


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


# -- the directory ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate that the authority issued."""

    certificate: x509.Certificate
    leaf: Leaf
    is_revoked: bool = False

    @property
    def serial(self) -> str:
        """The serial number in hexadecimal digits, as `openssl x509 -serial` prints it."""
        return serial_text(self.certificate.serial_number)

    def state(self, now: datetime) -> State:
        """Return the certificate's state."""
        if self.is_revoked:
            return State.REVOKED
        return state_at(now, self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc)

    def is_in_use(self, now: datetime) -> bool:
        """True if the certificate is neither expired nor revoked."""
        return self.state(now) in (State.VALID, State.EXPIRING)


@dataclass(frozen=True, slots=True)
class Contents:
    """The public content of an authority's directory."""

    authority: x509.Certificate
    crl: x509.CertificateRevocationList
    issued: tuple[IssuedCertificate, ...]
    """All certificates, the oldest first."""

    def of_name(self, name: str) -> list[IssuedCertificate]:
        """Return the certificates of a name, oldest first."""
        return [one for one in self.issued if one.leaf.name == name]


class Issued(NamedTuple):
    """A new certificate and its files."""

    entry: IssuedCertificate
    certificate: Path
    key: Path


def contents(directory: Path) -> Contents:
    """Return the directory's public content, without its lock and its key. Raises CertificatesError."""
    crl = _parsed(directory / "crl.pem", x509.load_pem_x509_crl)
    revoked = {entry.serial_number for entry in crl}
    issued = [_parsed(path, _issued) for path in (directory / "issued").glob("*.pem")]
    issued.sort(key=lambda one: one.certificate.not_valid_before_utc)
    known = (replace(one, is_revoked=one.certificate.serial_number in revoked) for one in issued)
    return Contents(_parsed(directory / "ca.pem", x509.load_pem_x509_certificate), crl, tuple(known))


def init(directory: Path, now: datetime, name: str = AUTHORITY_NAME, days: int = AUTHORITY_DAYS) -> Authority:
    """Make an authority in a new or empty directory. Raises CertificatesError.

    The revocation list is valid as long as the authority: a list that ended earlier would lock out every client if it
    was not signed again in time. The key is written last. If it is missing, the other files are not an authority, and
    `init` may write them again.
    """
    if not 1 <= len(name) <= 64 or not name.isprintable() or not name.strip():
        raise InputRefused("--name: use 1 to 64 printable characters")
    authority = new_authority(name, days, now)
    crl = sign_crl(authority, (), 0, now, authority.certificate.not_valid_after_utc)
    with _told(directory, "choose another directory"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _told(directory), only_writer(directory):
        found = {path.name for path in directory.iterdir()}
        if not found <= {"ca.pem", "crl.pem"}:
            problem = "it holds an authority already" if "ca.key" in found else "it is not empty"
            raise CertificatesError(f"{directory}: {problem}; choose an empty or a new directory")
        directory.chmod(0o700)
        key = Replacement(directory / "ca.key", key_pem(authority.key))
        replace_files(_public(directory / "crl.pem", crl), _public(directory / "ca.pem", authority.certificate), key)
    return authority


def issue(directory: Path, leaf: Leaf, now: datetime, days: int = LEAF_DAYS) -> Issued:
    """Issue a certificate with a new key. Raises CertificatesError, for example if the name is in use."""
    with _opened(directory, now) as (authority, found):
        earlier = found.of_name(leaf.name)
        for one in earlier:
            if one.is_in_use(now):
                end = f"{one.certificate.not_valid_after_utc:%Y-%m-%d}"
                raise CertificatesError(f"{leaf.name} has a certificate until {end}; renew it or revoke it first")
        for path in _files_of(directory, leaf.name):
            if not earlier and path.exists():
                raise CertificatesError(f"{path} exists, and the authority did not make it; choose another name")
        return _signed(directory, authority, leaf, days, now)


def renew(directory: Path, name: str, now: datetime, days: int | None = None) -> Issued:
    """Issue a certificate with a new key and the content of the newest certificate called `name`.

    The new certificate is valid for `days`, or by default for as many days as the newest one. Earlier certificates stay
    valid until their end. Raises CertificatesError.
    """
    with _opened(directory, now) as (authority, found):
        earlier = found.of_name(name)
        if not earlier:
            raise CertificatesError(f"the authority has issued no certificate of the name {name[:80]!r}")
        renewable = [one for one in earlier if not one.is_revoked]
        if not renewable:
            raise CertificatesError(f"{name} is revoked; issue a new certificate")
        newest = renewable[-1]
        lifetime = newest.certificate.not_valid_after_utc - newest.certificate.not_valid_before_utc + _SECOND
        return _signed(directory, authority, newest.leaf, days or max(1, lifetime.days), now)


def revoke(directory: Path, name: str, now: datetime) -> tuple[IssuedCertificate, ...]:
    """Revoke each certificate of this name that is in use.

    Raises CertificatesError. Returns the certificates that this call revoked: none if all were already revoked or
    expired.
    """
    with _opened(directory, now) as (authority, found):
        named = found.of_name(name)
        if not named:
            raise CertificatesError(f"the authority has issued no certificate of the name {name[:80]!r}")
        revoked = tuple(one for one in named if one.is_in_use(now))
        if revoked:
            at = now.replace(microsecond=0)
            new = (x509.RevokedCertificateBuilder(one.certificate.serial_number, at).build() for one in revoked)
            number = found.crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
            end = authority.certificate.not_valid_after_utc
            replace_files(_public(directory / "crl.pem", sign_crl(authority, (*found.crl, *new), number, now, end)))
        return revoked


@contextmanager
def _opened(directory: Path, now: datetime) -> Iterator[tuple[Authority, Contents]]:
    """Keep the authority locked for an operation that signs.

    No other user may be able to read or replace the authority's key.
    """
    with _told(directory), only_writer(directory):
        if directory.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise CertificatesError(
                f"{directory}: other users of this machine can replace its files; run `chmod 700 {directory}`"
            )
        found, key = contents(directory), _read_key(directory / "ca.key")
        if found.authority.public_key() != key.public_key():
            raise CertificatesError(f"{directory / 'ca.key'}: the key is not the certificate's; {_BACKUP}")
        if not found.crl.is_signature_valid(key.public_key()):
            raise CertificatesError(f"{directory / 'crl.pem'}: the list is not the authority's; {_BACKUP}")
        if found.authority.not_valid_after_utc < now:
            raise CertificatesError(
                f"{directory}: the authority expired on {found.authority.not_valid_after_utc:%Y-%m-%d}; "
                "make a new one with `postback certs init` elsewhere"
            )
        yield Authority(found.authority, key), found


def _signed(directory: Path, authority: Authority, leaf: Leaf, days: int, now: datetime) -> Issued:
    """Sign a certificate for a new key, and write all files.

    The key is written before its certificate: a killed command leaves no certificate without its key.
    """
    key = new_key()
    entry = IssuedCertificate(sign_leaf(authority, leaf, key.public_key(), days, now), leaf)
    certificate_path, key_path = _files_of(directory, leaf.name)
    issued = directory / "issued"
    issued.mkdir(mode=0o700, exist_ok=True)
    with only_writer(issued):
        replace_files(_public(issued / f"{entry.serial}.pem", entry.certificate))
    replace_files(Replacement(key_path, key_pem(key)), _public(certificate_path, entry.certificate))
    return Issued(entry, certificate_path, key_path)


def _files_of(directory: Path, name: str) -> tuple[Path, Path]:
    """Return the files of a leaf's certificate and of its private key."""
    return directory / f"{name}.pem", directory / f"{name}.key"


def _public(path: Path, content: x509.Certificate | x509.CertificateRevocationList) -> Replacement:
    return Replacement(path, content.public_bytes(Encoding.PEM), private=False)


def _issued(content: bytes) -> IssuedCertificate:
    """Return a certificate of `issued`. Raises ValueError and ExtensionNotFound."""
    certificate = x509.load_pem_x509_certificate(content)
    return IssuedCertificate(certificate, Leaf.of(certificate))


def _parsed(path: Path, parse: Callable[[bytes], Parsed]) -> Parsed:
    """Return the content of a public file in PEM. Raises CertificatesError."""
    with _told(path):
        content = path.read_bytes()
    try:
        return parse(content)
    except (ValueError, x509.ExtensionNotFound):
        raise CertificatesError(f"{path}: it is no certificate or list in PEM; {_BACKUP}") from None


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    with _told(path):
        content = read_private(path, _LARGEST_KEY_BYTES, by_root=True)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError):
        raise CertificatesError(f"{path}: it is no private key in PEM, or has a passphrase; {_BACKUP}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificatesError(f"{path}: it is no key on an elliptic curve; {_BACKUP}")
    return key


@contextmanager
def _told(path: Path, fix: str | None = None) -> Iterator[None]:
    """Raise CertificatesError for an error of the block about this path, with this fix or the error's own."""
    try:
        yield
    except PrivateFileRefused as refused:
        raise CertificatesError(f"{path}: {refused}") from None
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno is not None else "it cannot be used"
        is_absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        own = "make an authority with `postback certs init`" if is_absent else "let this user read and write it"
        raise CertificatesError(f"{path}: {reason}; {fix or own}") from None
