"""TLS of callbacks: trusted authorities and client certificates.

An endpoint must show a certificate for its name from an authority of the system or of `ca_file`. TLS is 1.2 or 1.3
(OpenSSL takes the newer version if both sides support it). A tenant may have a client certificate, for endpoints that
ask for one (mutual TLS). The module refuses the certificate's file if a stranger may read or replace the key. The
module reads `ca_file` and certificates again after they are replaced. The system's authorities are read at the
process's start, and again whenever a certificate file is replaced. The pool keeps each context's connections apart, so
a connection with one tenant's certificate never serves another tenant.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.delivery.settings import DeliverySettings
from workers.system.tls_files import Stamp, TlsFileUnusable, load_authorities, load_certificate, stamp

_LOOK_SECONDS = 10.0
"""Seconds between checks for replaced files. Operators replace short-lived certificates and authorities in place."""

log = get_logger()


@dataclass(slots=True)
class _LoadedTls:
    """A context, and the stamps of the files from which the context was made."""

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
        # Stamps are read before the files, so that the next check notices a change during the read.
        stamps = self._stamps(certificate)
        return _LoadedTls(_context(self._ca_file, certificate), certificate, stamps, self._clock.monotonic())

    def _stamps(self, certificate: Path | None) -> list[Stamp]:
        return [stamp(path) for path in (self._ca_file, certificate) if path is not None]

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
        """Log each problem only once, because the check is repeated every ten seconds."""
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
        load_authorities(context, ca_file)
    if certificate is not None:
        load_certificate(context, certificate)
    return context
