"""An authority's directory, and the operations of `postback certs` on it.

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
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, ValidationError

from cli.operations.certificates.rules import (
    AUTHORITY_DAYS,
    CRL_DAYS,
    LEAF_DAYS,
    AuthorityUnusable,
    CertificateExists,
    CertificateUnknown,
    State,
    authority_state,
    checked_authority_name,
    checked_days,
    days_left,
    state_at,
)
from cli.operations.certificates.signing import (
    Authority,
    IssuedCertificate,
    Leaf,
    PemRefused,
    Reason,
    crl_number,
    key_pem,
    load_authority,
    load_certificate,
    load_key,
    new_authority,
    new_key,
    serial_text,
    sign_crl,
    sign_leaf,
)
from telemetry.private_file import PrivateFileRefused, Replacement, only_writer, read_private, replace_files

AUTHORITY_NAME = "Postback CA"
_LARGEST_BYTES = 256 * 1024 * 1024
"""Limit on the size of a file. The index of a hundred thousand certificates has 40 MB."""
_BACKUP = "put the file back from a backup"
_INIT = "make an authority with `postback certs init`"
_ACCESS = "let this user read and write it"
_SLOW_CLOCKS = timedelta(days=1)
_SEPARATORS = re.compile(r"[:\s]")


class Index(BaseModel):
    """The content of the index's file."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    format: Literal[1] = 1
    crl_number: int = 0
    """The number of the newest revocation list."""
    crl_days: int = CRL_DAYS
    """The days from one list to its next update."""
    certificates: tuple[IssuedCertificate, ...] = ()
    """All certificates, the oldest first."""

    def with_issued(self, issued: IssuedCertificate) -> Index:
        """Return the index with one more certificate."""
        return self.model_copy(update={"certificates": (*self.certificates, issued)})

    def with_revoked(self, serials: set[str], at: datetime, reason: Reason) -> Index:
        """Return the index with these certificates revoked."""
        revoked = {"revoked_at": at, "reason": reason}
        return self.model_copy(
            update={
                "certificates": tuple(
                    one.model_copy(update=revoked) if one.serial in serials else one for one in self.certificates
                )
            }
        )

    def with_next_crl(self, days: int | None = None) -> Index:
        """Return the index for one more revocation list."""
        return self.model_copy(update={"crl_number": self.crl_number + 1, "crl_days": days or self.crl_days})

    def of_name(self, name: str) -> list[IssuedCertificate]:
        """Return the certificates of a name, oldest first."""
        return [one for one in self.certificates if one.name == name]

    def of_serial(self, text: str) -> list[IssuedCertificate]:
        """Return the certificate with a serial number, in any common notation: with colons, lower case or `0x`."""
        digits = _SEPARATORS.sub("", text).upper().removeprefix("0X").lstrip("0")
        return [one for one in self.certificates if one.serial.lstrip("0") == digits]

    def newest(self) -> dict[str, IssuedCertificate]:
        """Return the newest certificate of each name."""
        return {one.name: one for one in self.certificates}

    def revoked(self, now: datetime) -> Iterator[IssuedCertificate]:
        """Yield the certificates of a revocation list. A certificate that expired a day ago needs no entry.

        The day is for servers whose clocks are slow: to them the certificate has not expired yet.
        """
        for one in self.certificates:
            if one.revoked_at is not None and one.not_after + _SLOW_CLOCKS >= now:
                yield one


class AuthorityFiles:
    """The files in one directory. Every method raises AuthorityUnusable."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca_key = directory / "ca.key"
        self.ca_certificate = directory / "ca.pem"
        self.crl = directory / "crl.pem"
        self.index = directory / "index.json"

    def certificate_of(self, name: str) -> Path:
        """The file of a leaf's certificate."""
        return self.directory / f"{name}.pem"

    def key_of(self, name: str) -> Path:
        """The file of a leaf's private key."""
        return self.directory / f"{name}.key"

    @contextmanager
    def making(self) -> Iterator[None]:
        """Make the directory with mode 0700, and keep it locked during the block.

        A directory that already exists must be empty, or come from an interrupted `init`.
        """
        with _told(self.directory, "choose another directory"):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.writing():
            found = {path.name for path in self.directory.iterdir()}
            if found and not self._is_interrupted(found):
                problem = "it holds an authority already" if self.ca_key.name in found else "it is not empty"
                raise AuthorityUnusable(self.directory, problem, "choose an empty or a new directory")
            self.directory.chmod(0o700)
            yield

    def _is_interrupted(self, found: set[str]) -> bool:
        """True if the files are those of an `init` that was interrupted before it wrote the last one, ca.pem."""
        if not found <= {self.index.name, self.crl.name, self.ca_key.name} or self.index.name not in found:
            return False
        index = self.read_index()
        return not index.certificates and index.crl_number == 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep the directory locked during the block."""
        with _told(self.directory), only_writer(self.directory):
            yield

    def read_authority(self) -> Authority:
        """Check that no other user can read or replace the authority's key, and return the authority."""
        with _told(self.directory):
            is_open = self.directory.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if is_open:
            fix = f"run `chmod 700 {self.directory}`"
            raise AuthorityUnusable(self.directory, "other users of this machine can replace its files", fix)
        certificate, key = self.read_certificate(), self._read(self.ca_key, private=True)
        with _told(self.ca_key):
            return load_authority(certificate, key)

    def read_certificate(self) -> x509.Certificate:
        """Return the authority's certificate."""
        content = self._read(self.ca_certificate)
        with _told(self.ca_certificate):
            return load_certificate(content)

    def read_index(self) -> Index:
        """Return the index."""
        content = self._read(self.index, private=True)
        try:
            return Index.model_validate_json(content)
        except ValidationError as error:
            place = ".".join(map(str, error.errors(include_input=False)[0]["loc"])) or "the JSON"
            raise AuthorityUnusable(self.index, f"it is no index of certificates: {place}", _BACKUP) from None

    def read_crl(self) -> x509.CertificateRevocationList | None:
        """Return the revocation list, or None if there is none that can be read."""
        try:
            return x509.load_pem_x509_crl(self._read(self.crl))
        except (ValueError, AuthorityUnusable):
            return None

    def read_leaf_key(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Return a leaf's private key."""
        path, fix = self.key_of(name), "renew with a new key"
        if not path.exists():
            raise AuthorityUnusable(path, "the key is not here", fix)
        content = self._read(path, private=True)
        with _told(path, fix):
            return load_key(content)

    def write(self, *replacements: Replacement) -> None:
        """Replace files in this order."""
        with _told(self.directory):
            replace_files(*replacements)

    def new_index(self, index: Index) -> Replacement:
        """Return the index's new content, for `write`."""
        return Replacement(self.index, index.model_dump_json(indent=1).encode() + b"\n")

    def new_crl(self, crl: x509.CertificateRevocationList) -> Replacement:
        """Return the revocation list's new content, for `write`."""
        return Replacement(self.crl, crl.public_bytes(Encoding.PEM), private=False)

    def new_authority(self, authority: Authority) -> tuple[Replacement, Replacement]:
        """Return the authority's key, and then the authority's certificate, for `write`."""
        certificate = authority.certificate.public_bytes(Encoding.PEM)
        return (
            Replacement(self.ca_key, key_pem(authority.key)),
            Replacement(self.ca_certificate, certificate, private=False),
        )

    def new_leaf(
        self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> tuple[Replacement, Replacement]:
        """Return a leaf's key, and then the leaf's certificate, for `write`."""
        return (
            Replacement(self.key_of(name), key_pem(key)),
            Replacement(self.certificate_of(name), certificate.public_bytes(Encoding.PEM), private=False),
        )

    def _read(self, path: Path, *, private: bool = False) -> bytes:
        with _told(path):
            if private:
                content = read_private(path, _LARGEST_BYTES, by_root=True)
            else:
                with path.open("rb") as file:
                    content = file.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            raise AuthorityUnusable(path, "it is larger than any file of an authority", _BACKUP)
        return content


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
        raise AuthorityUnusable(path, reason, fix or (_INIT if is_absent else _ACCESS)) from None
    except PemRefused as refused:
        raise AuthorityUnusable(path, str(refused), fix or _BACKUP) from None


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
        return opened.sign(leaf, days)


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
        return opened.sign(leaf, days, key, tuple(one for one in earlier if one.is_in_use(now)) if revoke_old else ())


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
        opened.revoke(revoked, reason)
        return revoked


def renew_crl(directory: Path, now: datetime, days: int | None = None) -> x509.CertificateRevocationList:
    """Sign the revocation list again, for as many days as before unless `days` is given. Raises CertificatesError."""
    days = None if days is None else checked_days("--days", days, "crl")
    files = AuthorityFiles(directory)
    with _opened(files, now) as opened:
        return opened.sign_list(days)


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
        opened = _Opened(files, now, authority, index, crl_problem(files.read_crl(), index, now) is not None)
        yield opened
        if opened.crl_is_due:
            opened.sign_list()


@dataclass(slots=True)
class _Opened:
    """An authority whose directory is locked for writing."""

    files: AuthorityFiles
    now: datetime
    authority: Authority
    index: Index
    crl_is_due: bool

    def sign(
        self,
        leaf: Leaf,
        days: int,
        key: ec.EllipticCurvePrivateKey | None = None,
        old: tuple[IssuedCertificate, ...] = (),
    ) -> Issued:
        """Sign a certificate for a new key, or for the given one, revoke old ones, and write all files."""
        key = key if key is not None else new_key()
        certificate = sign_leaf(self.authority, leaf, key.public_key(), days, self.now)
        entry = IssuedCertificate(
            **leaf.model_dump(),
            serial=serial_text(certificate.serial_number),
            days=days,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
        self.index = self.index.with_issued(entry)
        written = self.files.new_leaf(leaf.name, certificate, key)
        if old or self.crl_is_due:
            self.revoke(old, Reason.SUPERSEDED, *written)
        else:
            self.files.write(self.files.new_index(self.index), *written)
        return Issued(entry, written[1].path, written[0].path, old)

    def revoke(self, certificates: tuple[IssuedCertificate, ...], reason: Reason, *written: Replacement) -> None:
        """Revoke certificates in a new list, and write the list and further files; without any, write nothing."""
        if certificates or written:
            serials = {one.serial for one in certificates}
            self.index = self.index.with_revoked(serials, self.now.replace(microsecond=0), reason)
            self.sign_list(None, *written)

    def sign_list(self, days: int | None = None, *written: Replacement) -> x509.CertificateRevocationList:
        """Sign a new revocation list, and write it with the index and further files."""
        self.index, self.crl_is_due = self.index.with_next_crl(days), False
        number, lasts = self.index.crl_number, self.index.crl_days
        crl = sign_crl(self.authority, self.index.revoked(self.now), number, lasts, self.now)
        self.files.write(self.files.new_index(self.index), self.files.new_crl(crl), *written)
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
    for name, newest in contents.index.newest().items():
        if (state := newest.state(now)) in (State.EXPIRED, State.EXPIRING):
            verb = "expired" if state is State.EXPIRED else "expires"
            yield f"{name} {verb} {days_left(now, newest.not_after)}: `postback certs renew {where} {name}`"
