"""TLS of callbacks: whom we trust, and as whom we connect.

The other side has to show a certificate for its name from an authority of the system or of `ca_file`, over TLS 1.2 or
1.3 (OpenSSL takes the newer one where both sides can). A tenant may have a certificate of its own that its endpoints
ask for (mutual TLS). Connections are pooled by context, so one tenant's are never used for another.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from telemetry.clock import Clock
from telemetry.logs import get_logger
from workers.delivery.settings import DeliverySettings
from workers.process import ProcessError

_LOOK_SECONDS = 10.0
"""How often a certificate's file is looked at: short-lived ones are replaced in place while we run."""

log = get_logger()


class TlsFileUnusable(ProcessError):  # noqa: N818 - it names what is wrong
    """A file with certificates or a key cannot be used. The text names the file and never what is in it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be used for TLS: {reason}")
        self.path = path


@dataclass(slots=True)
class _Loaded:
    """A tenant's certificate as it was read."""

    path: Path
    context: ssl.SSLContext
    stamp: tuple[int, int] | None
    looked_at: float
    problem: str | None = field(default=None)


class TlsContexts:
    """A context for each tenant. Making it reads every file that the settings name, and raises TlsFileUnusable."""

    def __init__(self, settings: DeliverySettings, clock: Clock) -> None:
        self._ca_file = settings.ca_file
        self._clock = clock
        self._without = _context(self._ca_file)
        self._loaded = {tenant: self._load(path) for tenant, path in settings.client_certificates.items()}

    def of(self, tenant: str) -> ssl.SSLContext:
        """The context for a tenant's callbacks. A certificate that was replaced is used for new connections."""
        loaded = self._loaded.get(tenant)
        if loaded is None:
            return self._without
        if self._clock.monotonic() - loaded.looked_at >= _LOOK_SECONDS:
            loaded = self._loaded[tenant] = self._look_again(tenant, loaded)
        return loaded.context

    def _load(self, path: Path) -> _Loaded:
        stamp = _stamp(path)  # taken first: what is written meanwhile is read again at the next look
        return _Loaded(path, _context(self._ca_file, path), stamp, self._clock.monotonic())

    def _look_again(self, tenant: str, loaded: _Loaded) -> _Loaded:
        loaded.looked_at = self._clock.monotonic()
        stamp = _stamp(loaded.path)
        if stamp == loaded.stamp:
            return loaded
        try:
            return self._load(loaded.path)
        except TlsFileUnusable as error:
            if str(error) != loaded.problem:  # once per problem: this runs for every callback
                loaded.problem = str(error)
                log.error(
                    "A client certificate cannot be read again; the one in hand stays in use.",
                    action="client-certificate-reload-failed",
                    tenant=tenant,
                    problem=loaded.problem,
                )
            return loaded


def _context(ca_file: Path | None, certificate: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (ssl.SSLError, OSError) as error:
            raise TlsFileUnusable(ca_file, _reason(error)) from None
    if certificate is not None:
        try:
            # A key with a passphrase would make OpenSSL ask for it on the terminal.
            context.load_cert_chain(certificate, password=_no_passphrase)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise TlsFileUnusable(certificate, _reason(error)) from None
    return context


def _no_passphrase() -> str:
    raise ValueError("its key has a passphrase")


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when the file does; None where it is away."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"it does not hold what it should in PEM ({error.reason or 'unreadable'})"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return str(error)
