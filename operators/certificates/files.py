"""The files of an authority's directory: read with checks of access, replaced in one step, by one writer at a time.

DIR (0700)
├── ca.key (0600)       the authority's private key
├── ca.pem              its certificate, which clients and servers trust
├── crl.pem             its revocation list, which servers read
├── index.json (0600)   all certificates that it issued
├── NAME.key (0600)     the private key of a leaf
└── NAME.pem            its newest certificate
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from operators.certificates.authority import Authority, AuthorityMismatch, key_pem, load_authority, load_certificate
from operators.certificates.errors import AuthorityUnusable
from operators.certificates.index import Index
from telemetry.private_file import PrivateFileRefused, Replacement, only_writer, read_private, replace_files

_LARGEST_BYTES = 256 * 1024 * 1024
"""Limit on the size of a file. The index of a hundred thousand certificates has 40 MB."""
_BACKUP = "put the file back from a backup"
_INIT = "make an authority with `postback certs init`"


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
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise AuthorityUnusable(self.directory, _reason(error), "choose another directory") from None
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
        try:
            with only_writer(self.directory):
                yield
        except OSError as error:
            raise AuthorityUnusable(self.directory, _reason(error), _fix_of(error)) from None

    def read_authority(self) -> Authority:
        """Check that no other user can read or replace the authority's key, and return the authority."""
        self._check_directory()
        try:
            return load_authority(self._read(self.ca_certificate), self._read(self.ca_key, private=True))
        except AuthorityMismatch as problem:
            raise AuthorityUnusable(self.ca_key, str(problem), _BACKUP) from None

    def read_certificate(self) -> x509.Certificate:
        """Return the authority's certificate."""
        try:
            return load_certificate(self._read(self.ca_certificate))
        except AuthorityMismatch as problem:
            raise AuthorityUnusable(self.ca_certificate, str(problem), _BACKUP) from None

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

    def read_leaf_key(self, name: str) -> bytes:
        """Return the PEM text of a leaf's private key."""
        path = self.key_of(name)
        if not path.exists():
            raise AuthorityUnusable(path, "the key is not here", "renew with a new key")
        return self._read(path, private=True)

    def write(self, *replacements: Replacement) -> None:
        """Replace files in this order."""
        try:
            replace_files(*replacements)
        except OSError as error:
            raise AuthorityUnusable(self.directory, _reason(error), _fix_of(error)) from None

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

    def new_leaf(self, name: str, certificate: x509.Certificate, key: bytes) -> tuple[Replacement, Replacement]:
        """Return a leaf's key, and then the leaf's certificate, for `write`."""
        return (
            Replacement(self.key_of(name), key),
            Replacement(self.certificate_of(name), certificate.public_bytes(Encoding.PEM), private=False),
        )

    def _check_directory(self) -> None:
        """Refuse a directory in which another user could replace the files."""
        try:
            mode = self.directory.stat().st_mode
        except OSError as error:
            raise AuthorityUnusable(self.directory, _reason(error), _fix_of(error)) from None
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            fix = f"run `chmod 700 {self.directory}`"
            raise AuthorityUnusable(self.directory, "other users of this machine can replace its files", fix)

    def _read(self, path: Path, *, private: bool = False) -> bytes:
        try:
            content = read_private(path, _LARGEST_BYTES, by_root=True) if private else _read_public(path)
        except OSError as error:
            raise AuthorityUnusable(path, _reason(error), _fix_of(error)) from None
        except PrivateFileRefused as refused:
            raise AuthorityUnusable(path, refused.problem, refused.fix) from None
        if len(content) > _LARGEST_BYTES:
            raise AuthorityUnusable(path, "it is larger than any file of an authority", _BACKUP)
        return content


def _read_public(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST_BYTES + 1)


def _fix_of(error: OSError) -> str:
    return _INIT if isinstance(error, FileNotFoundError | NotADirectoryError) else "let this user read and write it"


def _reason(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno is not None else "it cannot be used"
