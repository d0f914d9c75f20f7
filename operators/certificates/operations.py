"""The operations of `postback certs` on an authority's directory.

An operation that signs locks the directory from its first read to its last write, so that no entry of the index is
lost. The index is written first, so that every certificate that is on the disk can be revoked. An operation that was
killed must be run again. An interrupted operation may leave the revocation list older than the index; the next
operation then signs the list again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from operators.certificates.authority import Authority, AuthorityMismatch, key_pem, load_key, new_authority, new_key
from operators.certificates.errors import AuthorityUnusable, CertificateExists, CertificateUnknown
from operators.certificates.files import AuthorityFiles
from operators.certificates.index import Index, IssuedCertificate
from operators.certificates.issuing import Leaf, serial_text, sign_leaf
from operators.certificates.lifetimes import (
    AUTHORITY_DAYS,
    CRL_DAYS,
    LEAF_DAYS,
    checked_days,
)
from operators.certificates.names import checked_authority_name
from operators.certificates.notices import Contents, crl_problem
from operators.certificates.revocation import Reason, sign_crl
from telemetry.private_file import Replacement

AUTHORITY_NAME = "Postback CA"


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


@dataclass(slots=True)
class _Opened:
    """An authority whose directory is locked for writing, and the files to replace."""

    authority: Authority
    index: Index
    crl_is_due: bool


def init(
    directory: Path, now: datetime, name: str = AUTHORITY_NAME, days: int = AUTHORITY_DAYS, crl_days: int = CRL_DAYS
) -> Authority:
    """Make an authority in a new or empty directory. Raises CertificatesError.

    The certificate is written last. If it is missing, the other files are not an authority, and `init` may write them
    again.
    """
    name, days = checked_authority_name(name), checked_days("--days", days, "authority")
    files, index = AuthorityFiles(directory), Index(crl_days=checked_days("--crl-days", crl_days, "crl"))
    authority = new_authority(name, days, now)
    crl = sign_crl(authority, (), index.crl_number, index.crl_days, now)
    with files.making():
        files.write(files.new_index(index), files.new_crl(crl), *files.new_authority(authority))
    return authority


def issue(directory: Path, leaf: Leaf, now: datetime, days: int = LEAF_DAYS) -> Issued:
    """Issue a certificate with a new key. Raises CertificatesError, for example CertificateExists."""
    days, files = checked_days("--days", days, leaf.kind), AuthorityFiles(directory)
    with _opened(files, now) as opened:
        earlier = opened.index.of_name(leaf.name)
        for one in earlier:
            if one.is_in_use(now):
                raise CertificateExists(
                    f"{leaf.name} has a certificate until {_day(one.not_after)}; renew it or revoke it first"
                )
        for path in (files.certificate_of(leaf.name), files.key_of(leaf.name)):
            if not earlier and path.exists():
                raise CertificateExists(f"{path} exists, and the authority did not make it; choose another name")
        return _sign(files, opened, leaf, days, now)


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
    files = AuthorityFiles(directory)
    with _opened(files, now) as opened:
        earlier = opened.index.of_name(name)
        if not earlier:
            raise CertificateUnknown(f"the authority has issued no certificate of the name {name!r}")
        newest = earlier[-1]
        if newest.revoked_at is not None:
            raise CertificateUnknown(f"{name} is revoked since {_day(newest.revoked_at)}; issue a new certificate")
        leaf = newest.leaf
        days = newest.days if days is None else checked_days("--days", days, leaf.kind)
        key = files.read_leaf_key(name) if keep_key else None
        old = tuple(one for one in earlier if one.is_in_use(now)) if revoke_old else ()
        return _sign(files, opened, leaf, days, now, key=key, old=old)


def revoke(
    directory: Path, name_or_serial: str, now: datetime, reason: Reason = Reason.UNSPECIFIED
) -> tuple[IssuedCertificate, ...]:
    """Revoke each certificate that is in use and has this name or this serial number.

    Raises CertificatesError. Returns the certificates that this call revoked: none if all were already revoked or
    expired.
    """
    files = AuthorityFiles(directory)
    with _opened(files, now) as opened:
        found = opened.index.of_name(name_or_serial) or opened.index.of_serial(name_or_serial)
        if not found:
            raise CertificateUnknown(f"no certificate has the name or the serial number {name_or_serial[:80]!r}")
        revoked = tuple(one for one in found if one.is_in_use(now))
        if revoked:
            _revoke(opened, revoked, now, reason)
            files.write(*_index_and_crl(files, opened, now))
        return revoked


def renew_crl(directory: Path, now: datetime, days: int | None = None) -> x509.CertificateRevocationList:
    """Sign the revocation list again, for as many days as before unless `days` is given. Raises CertificatesError."""
    days = None if days is None else checked_days("--days", days, "crl")
    files = AuthorityFiles(directory)
    with _opened(files, now) as opened:
        opened.index, opened.crl_is_due = opened.index.with_next_crl(days), False
        crl = _signed_crl(opened, now)
        files.write(files.new_index(opened.index), files.new_crl(crl))
        return crl


def contents(directory: Path) -> Contents:
    """Return the directory's public content.

    This function needs neither the directory's lock nor the authority's key. Raises AuthorityUnusable.
    """
    files = AuthorityFiles(directory)
    return Contents(files.read_certificate(), files.read_index(), files.read_crl())


@contextmanager
def _opened(files: AuthorityFiles, now: datetime) -> Iterator[_Opened]:
    """Keep the authority locked for an operation that signs, and sign its revocation list again if that is due."""
    with files.writing():
        authority, index = files.read_authority(), files.read_index()
        if authority.ends < now:
            problem = f"the authority expired on {_day(authority.ends)}"
            raise AuthorityUnusable(files.directory, problem, "make a new one with `postback certs init` elsewhere")
        opened = _Opened(authority, index, crl_problem(files.read_crl(), index, now) is not None)
        yield opened
        if opened.crl_is_due:
            files.write(*_index_and_crl(files, opened, now))


def _sign(
    files: AuthorityFiles,
    opened: _Opened,
    leaf: Leaf,
    days: int,
    now: datetime,
    *,
    key: bytes | None = None,
    old: tuple[IssuedCertificate, ...] = (),
) -> Issued:
    """Sign a certificate for a new key, or for the given one, and write all files."""
    try:
        leaf_key = new_key() if key is None else load_key(key)
    except AuthorityMismatch as problem:
        raise AuthorityUnusable(files.key_of(leaf.name), str(problem), "renew with a new key") from None
    certificate = sign_leaf(opened.authority, leaf, leaf_key.public_key(), days, now)
    entry = IssuedCertificate(
        **leaf.model_dump(),
        serial=serial_text(certificate.serial_number),
        days=days,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )
    opened.index = opened.index.with_issued(entry)
    written = files.new_leaf(leaf.name, certificate, key_pem(leaf_key))
    if old:
        _revoke(opened, old, now, Reason.SUPERSEDED)
    changed = _index_and_crl(files, opened, now) if old or opened.crl_is_due else (files.new_index(opened.index),)
    files.write(*changed, *written)
    return Issued(entry, written[1].path, written[0].path, old)


def _revoke(opened: _Opened, certificates: tuple[IssuedCertificate, ...], now: datetime, reason: Reason) -> None:
    serials = {one.serial for one in certificates}
    opened.index = opened.index.with_revoked(serials, now.replace(microsecond=0), reason)


def _index_and_crl(files: AuthorityFiles, opened: _Opened, now: datetime) -> tuple[Replacement, Replacement]:
    """Return the index, with a new number for the revocation list, and the list itself."""
    opened.index, opened.crl_is_due = opened.index.with_next_crl(), False
    return files.new_index(opened.index), files.new_crl(_signed_crl(opened, now))


def _signed_crl(opened: _Opened, now: datetime) -> x509.CertificateRevocationList:
    index = opened.index
    return sign_crl(opened.authority, index.revocations(now), index.crl_number, index.crl_days, now)


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d}"
