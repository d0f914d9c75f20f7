"""A private certificate authority, and what it signs: leaves of servers and clients, and revocation lists.

The authority has an EC key on P-256, and a self-signed certificate that may issue leaves only. It follows RFC 5280:
path length 0, `keyCertSign` and `cRLSign`, subject key identifier.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import BaseModel, ConfigDict, Field

from cli.operations.certificates.rules import (
    MOST_SANS,
    NAME_PATTERN,
    SCOPE_URI,
    SKEW,
    TENANT_URI,
    InputRefused,
    State,
    checked_name,
    checked_san,
    checked_scopes,
    checked_tenant,
    state_at,
    validity,
)


class PemRefused(ValueError):  # noqa: N818 - named after the refusal
    """A PEM text is no certificate or key that fits. The error's text states the reason."""


@dataclass(frozen=True, slots=True)
class Authority:
    """An authority's certificate and the key that signs leaves and revocation lists."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def ends(self) -> datetime:
        """The last second of the authority's certificate."""
        return self.certificate.not_valid_after_utc

    @property
    def key_identifier(self) -> x509.AuthorityKeyIdentifier:
        """The extension by which leaves and revocation lists name the authority's key."""
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key on P-256, the curve that every TLS library supports and that signs fastest."""
    return ec.generate_private_key(ec.SECP256R1())


def new_authority(name: str, days: int, now: datetime) -> Authority:
    """Return a new authority that is valid for `days` from now."""
    key, subject = new_key(), _common_name(name)
    begin, end = validity(days, now)
    builder = (
        x509.CertificateBuilder(issuer_name=subject, subject_name=subject, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return Authority(builder.sign(key, SHA256()), key)


def load_authority(certificate: x509.Certificate, key_pem: bytes) -> Authority:
    """Return the authority of a certificate and of a PEM text with its key. Raises PemRefused."""
    key = load_key(key_pem)
    if certificate.public_key() != key.public_key():
        raise PemRefused("the key is not the certificate's")
    return Authority(certificate, key)


def load_certificate(pem: bytes) -> x509.Certificate:
    """Return the certificate of a PEM text. Raises PemRefused."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise PemRefused("it is no certificate in PEM") from None


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Return the private key of a PEM text. Raises PemRefused."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise PemRefused("it is no private key in PEM, or has a passphrase") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PemRefused("it is no key on an elliptic curve")
    return key


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
        name = checked_name(name)
        if len(sans) > MOST_SANS:
            raise InputRefused(f"--san: at most {MOST_SANS} names")
        return cls(name=name, kind=LeafKind.SERVER, sans=tuple(map(checked_san, sans or (name,))))

    @classmethod
    def client(cls, name: str, tenant: str, scopes: str = "") -> Self:
        """Return a leaf of a tenant's client, with scopes that commas or spaces separate. Raises InputRefused."""
        name, tenant = checked_name(name), checked_tenant(tenant)
        return cls(name=name, kind=LeafKind.CLIENT, tenant=tenant, scopes=checked_scopes(scopes))


def sign_leaf(
    authority: Authority, leaf: Leaf, key: CertificatePublicKeyTypes, days: int, now: datetime
) -> x509.Certificate:
    """Return a certificate for the leaf and its public key, valid no longer than the authority's certificate."""
    begin, end = validity(days, now, authority.ends)
    names = x509.SubjectAlternativeName(_general_names(leaf))
    return (
        x509.CertificateBuilder(
            issuer_name=authority.certificate.subject, subject_name=_common_name(leaf.name), public_key=key
        )
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(begin, authority.certificate.not_valid_before_utc))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGE[leaf.kind]]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(authority.key_identifier, critical=False)
        .sign(authority.key, SHA256())
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
