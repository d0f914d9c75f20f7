"""TLS of callbacks: trusted authorities and client certificates.

An endpoint must show a certificate for its name from an authority of the system or of `ca_file`. TLS is 1.2 or 1.3
(OpenSSL takes the newer one if both sides support it). A tenant may have a client certificate, for endpoints that ask
for one (mutual TLS). The module refuses the certificate's file if a stranger may read or replace the key. The module
reads `ca_file` and certificates again after they are replaced. The system's authorities are read at the process's
start, and again with each replaced file. The pool keeps each context's connections apart, so a connection with one
tenant's certificate never serves another tenant.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.delivery.private_file import access_problem
from workers.delivery.settings import DeliverySettings
from workers.system.errors import ProcessError

_LOOK_SECONDS = 10.0
"""Seconds between checks for replaced files: operators replace short-lived certificates and authorities in place."""

log = get_logger()


class TlsFileUnusable(ProcessError):  # noqa: N818 - named after the problem
    """A file with certificates or a key cannot be used. The text names the file, never its content."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be used for TLS: {reason}")
        self.path = path


Stamp = tuple[int, int, int] | None
"""A value that changes with a file, its owner or its mode; None if the file is missing."""


@dataclass(slots=True)
class _LoadedTls:
    """A context, and the stamps of the files that make it."""

    context: ssl.SSLContext
    certificate: Path | None
    """The tenant's own certificate; None for tenants without one."""
    stamps: list[Stamp]
    looked_at: float
    problem: str | None = field(default=None)


class TlsContexts:
    """The TLS contexts of tenants. The constructor reads every file in the settings, and raises TlsFileUnusable."""

    def __init__(self, settings: DeliverySettings, clock: Clock) -> None:
        self._ca_file = settings.ca_file
        self._clock = clock
        self._without = self._load(None)
        self._loaded = {tenant: self._load(path) for tenant, path in settings.client_certificates.items()}

    def of(self, tenant: str) -> ssl.SSLContext:
        """Return the context for a tenant's callbacks. Replaced files apply to new connections."""
        loaded = self._loaded.get(tenant, self._without)
        if loaded.stamps and self._clock.monotonic() - loaded.looked_at >= _LOOK_SECONDS:
            return self._look_again(tenant, loaded).context
        return loaded.context

    def _load(self, certificate: Path | None) -> _LoadedTls:
        stamps = self._stamps(certificate)  # taken first, so that the next look notices a change meanwhile
        return _LoadedTls(_context(self._ca_file, certificate), certificate, stamps, self._clock.monotonic())

    def _stamps(self, certificate: Path | None) -> list[Stamp]:
        return [_stamp(path) for path in (self._ca_file, certificate) if path is not None]

    def _look_again(self, tenant: str, loaded: _LoadedTls) -> _LoadedTls:
        loaded.looked_at = self._clock.monotonic()
        if self._stamps(loaded.certificate) == loaded.stamps:
            return loaded
        try:
            again = self._load(loaded.certificate)
        except TlsFileUnusable as error:
            self._say(error, loaded)
            return loaded
        if loaded is self._without:
            self._without = again
        else:
            self._loaded[tenant] = again
        return again

    def _say(self, error: TlsFileUnusable, loaded: _LoadedTls) -> None:
        """Log each problem once, since the check repeats every ten seconds."""
        if str(error) == loaded.problem:
            return
        loaded.problem = str(error)
        log.error(
            "A file of certificates cannot be read again; using the certificates that were read before.",
            action="certificates-reload-failed",
            problem=loaded.problem,
        )


def _context(ca_file: Path | None, certificate: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (ssl.SSLError, OSError) as error:
            raise TlsFileUnusable(ca_file, _reason(error)) from None
    if certificate is not None:
        _check_access(certificate)
        try:
            # Without `password`, OpenSSL would ask for a key's passphrase on the terminal.
            context.load_cert_chain(certificate, password=_no_passphrase)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise TlsFileUnusable(certificate, _reason(error)) from None
    return context


def _check_access(certificate: Path) -> None:
    """Raise TlsFileUnusable if a stranger may read or replace the file's private key."""
    try:
        problem = access_problem(certificate.stat(), certificate)
    except OSError as error:
        raise TlsFileUnusable(certificate, _reason(error)) from None
    if problem is not None:
        raise TlsFileUnusable(certificate, f"{problem.problem}; {problem.fix}")


def _no_passphrase() -> str:
    raise ValueError("its key has a passphrase")


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"it lacks the expected content in PEM ({error.reason or 'unreadable'})"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return str(error)
