"""Certificates of servers and clients, signed by an authority."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID
from pydantic import BaseModel, ConfigDict, field_validator

from operators.certificates.authority import Authority, key_usage
from operators.certificates.errors import InputRefused
from operators.certificates.lifetimes import validity
from operators.certificates.names import (
    MOST_SANS,
    checked_name,
    checked_san,
    checked_scopes,
    checked_tenant,
    common_name,
    general_names,
)


class LeafKind(StrEnum):
    """The side of a connection that presents the certificate."""

    SERVER = "server"
    CLIENT = "client"


_USAGE = {LeafKind.SERVER: ExtendedKeyUsageOID.SERVER_AUTH, LeafKind.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH}


class Leaf(BaseModel):
    """The content of a server's or a client's certificate, besides its key and its lifetime."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    name: str
    """The common name, and the name of the files."""
    kind: LeafKind
    sans: tuple[str, ...] = ()
    """A server's names, each as `DNS:web.example` or `IP:192.0.2.1`."""
    tenant: str | None = None
    """A client's tenant."""
    scopes: tuple[str, ...] = ()
    """A client's scopes."""

    @field_validator("name")
    @classmethod
    def _can_name_files(cls, name: str) -> str:
        return checked_name(name)

    @field_validator("sans")
    @classmethod
    def _can_be_names(cls, sans: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(map(checked_san, sans)))

    @field_validator("tenant")
    @classmethod
    def _can_be_a_tenant(cls, tenant: str | None) -> str | None:
        return None if tenant is None else checked_tenant(tenant)

    @field_validator("scopes")
    @classmethod
    def _can_be_scopes(cls, scopes: tuple[str, ...]) -> tuple[str, ...]:
        return checked_scopes(",".join(scopes))

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
    names = x509.SubjectAlternativeName(general_names(leaf.sans, leaf.tenant, leaf.scopes))
    return (
        x509.CertificateBuilder(
            issuer_name=authority.certificate.subject, subject_name=common_name(leaf.name), public_key=key
        )
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(begin, authority.certificate.not_valid_before_utc))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGE[leaf.kind]]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(authority.key_identifier, critical=False)
        .sign(authority.key, SHA256())
    )


def serial_text(serial: int) -> str:
    """Return a serial number as openssl and Python's `getpeercert` print it: hexadecimal, two digits a byte."""
    return serial.to_bytes((serial.bit_length() + 7) // 8 or 1, "big").hex().upper()
