"""Certificates, keys and authorities read from files into a TLS context."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from telemetry.atomic_file import access_problem
from workers.system.errors import ProcessError

Stamp = tuple[int, int, int] | None
"""A value that changes with a file, its owner or its mode; None if the file is missing."""


class TlsFileUnusable(ProcessError):  # noqa: N818 - named after the problem
    """A file with certificates or a key cannot be used. The text names the file, never its content."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be used for TLS: {reason}")
        self.path = path
        self.reason = reason


def load_authorities(context: ssl.SSLContext, path: Path) -> None:
    """Trust the authorities of the file, and use its revocation lists. Raises TlsFileUnusable."""
    try:
        context.load_verify_locations(cafile=path)
    except (ssl.SSLError, OSError) as error:
        raise TlsFileUnusable(path, _reason(error)) from None


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None = None) -> None:
    """Present the file's certificate, with its chain, to the other side. Raises TlsFileUnusable.

    Without `key`, the certificate's file holds the private key too. The key's file is refused if a stranger may read
    or replace it.
    """
    private = key or certificate
    try:
        problem = access_problem(private.stat(), private)
    except OSError as error:
        raise TlsFileUnusable(private, _reason(error)) from None
    if problem is not None:
        raise TlsFileUnusable(private, f"{problem.problem}; {problem.fix}")
    load_key(context, certificate, key)


def load_key(
    context: ssl.SSLContext, certificate: Path, key: Path | None = None, passphrase: str | None = None
) -> None:
    """Present the file's certificate, as `load_certificate` does, whoever may read the key. Raises TlsFileUnusable."""
    asked = False

    def given() -> str:
        # Without this function, OpenSSL would ask for a key's passphrase on the terminal.
        nonlocal asked
        asked = True
        if passphrase is None:
            raise ValueError("its key has a passphrase")
        return passphrase

    try:
        context.load_cert_chain(certificate, key, password=given)
    except (ssl.SSLError, OSError, ValueError) as error:
        is_wrong = asked and isinstance(error, ssl.SSLError) and error.reason is None
        raise TlsFileUnusable(
            certificate, "the passphrase of its key is wrong" if is_wrong else _reason(error)
        ) from None


def stamp(path: Path) -> Stamp:
    """Return the file's stamp."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason in {"KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}:
        return "the key is not the certificate's"
    if isinstance(error, ssl.SSLError):
        return f"it lacks the expected content in PEM ({error.reason or 'unreadable'})"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return str(error)
