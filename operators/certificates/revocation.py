"""Certificate revocation lists (RFC 5280, section 5)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from operators.certificates.authority import Authority
from operators.certificates.lifetimes import SKEW


class Reason(StrEnum):
    """Reasons for a revocation that apply to a leaf, as RFC 5280, section 5.3.1, and openssl name them."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"
    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"


class Revocation(NamedTuple):
    """One entry of a list."""

    serial: int
    at: datetime
    reason: Reason


def sign_crl(
    authority: Authority, revocations: Iterable[Revocation], number: int, days: int, now: datetime
) -> x509.CertificateRevocationList:
    """Return a list with this CRL number, which names its next update `days` from now."""
    now = now.replace(microsecond=0)
    builder = (
        x509.CertificateRevocationListBuilder(authority.certificate.subject, now - SKEW, now + timedelta(days=days))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(authority.key_identifier, critical=False)
    )
    for revocation in revocations:
        builder = builder.add_revoked_certificate(_entry(revocation))
    return builder.sign(authority.key, SHA256())


def crl_number(crl: x509.CertificateRevocationList) -> int:
    """Return the list's CRL number, or -1 if it has none."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (x509.ExtensionNotFound, ValueError):
        return -1


def _entry(revocation: Revocation) -> x509.RevokedCertificate:
    """Return the entry. The reason `unspecified` is left out, as RFC 5280, section 5.3.1, asks."""
    builder = x509.RevokedCertificateBuilder(revocation.serial, revocation.at)
    if revocation.reason is not Reason.UNSPECIFIED:
        builder = builder.add_extension(x509.CRLReason(x509.ReasonFlags(revocation.reason.value)), critical=False)
    return builder.build()
