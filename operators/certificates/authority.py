"""A private certificate authority: an EC key on P-256, and a self-signed certificate that may issue leaves only.

The authority's certificate follows RFC 5280: path length 0, `keyCertSign` and `cRLSign`, subject key identifier.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from operators.certificates.lifetimes import validity
from operators.certificates.names import common_name


class AuthorityMismatch(ValueError):  # noqa: N818 - named after the problem
    """The certificate and the key do not form an authority. The error's text states the reason."""


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
    key, subject = new_key(), common_name(name)
    begin, end = validity(days, now)
    builder = (
        x509.CertificateBuilder(issuer_name=subject, subject_name=subject, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    )
    return Authority(builder.sign(key, SHA256()), key)


def load_authority(certificate_pem: bytes, key_pem: bytes) -> Authority:
    """Return the authority whose certificate and key these two PEM texts are. Raises AuthorityMismatch."""
    certificate, key = load_certificate(certificate_pem), load_key(key_pem)
    if certificate.public_key() != key.public_key():
        raise AuthorityMismatch("the key is not the certificate's")
    return Authority(certificate, key)


def load_certificate(pem: bytes) -> x509.Certificate:
    """Return the certificate of a PEM text. Raises AuthorityMismatch."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise AuthorityMismatch("it is no certificate in PEM") from None


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Return the private key of a PEM text. Raises AuthorityMismatch."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        raise AuthorityMismatch("it is no private key in PEM, or has a passphrase") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityMismatch("it is no key on an elliptic curve")
    return key


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return the private key in PEM (PKCS 8). The key is not encrypted, because the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_usage(*, signs_certificates: bool = False) -> x509.KeyUsage:
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
