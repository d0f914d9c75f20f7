"""TLS of the door: version 1.3 only, client certificates if configured, and files that are read again when they change.

The server gets one context for its whole life. At each connection's ClientHello, OpenSSL calls back, and the connection
goes on with the newest context. So a renewed certificate and a new revocation list apply without a restart.

A door with client certificates gives out no session tickets. A resumed session would skip the check of the
certificate, so a revoked client could come back for two hours. An open connection also outlives a revocation, so the
door asks `DoorTls.refusal` at each request.
"""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from cli.operations.certificates import State, identity_of, serial_text, state_at
from telemetry.clock import Clock
from telemetry.logs import get_logger
from telemetry.metrics import Metrics
from workers.system.tls_files import Stamp, TlsFileUnusable, load_authorities, load_certificate, stamp

LOOK_SECONDS = 1.0
"""Files are checked for changes after this many seconds; a check takes four calls of `stat`."""
CRL_NAME = "crl.pem"
"""The revocation list's file, which `postback certs` writes beside the authority's certificate."""
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
"""One block of a PEM file (RFC 7468)."""

log = get_logger()


class PeerUnreadable(ValueError):  # noqa: N818 - named after the certificate
    """The bytes are no X.509 certificate that can be read."""


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The content of a client's certificate. TLS has verified the certificate before."""

    issuer: str
    """The issuer's distinguished name, as RFC 4514 writes it."""
    serial: str
    """The serial number in hexadecimal digits, as `postback certs list` shows it."""
    tenant: str | None
    """The client's tenant; None for a certificate without a tenant, which another authority may issue."""
    scopes: frozenset[str]
    not_after: float
    """The end of the certificate's validity, Unix seconds."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of the door's TLS, each in PEM, and the rule for clients."""

    certificate: Path
    """The server's certificate with its chain."""
    key: Path | None = None
    """The server's private key; by default in the certificate's file."""
    client_ca: Path | None = None
    """The authorities of client certificates. Without authorities, clients are asked for no certificate."""
    client_crl: Path | None = None
    """The authorities' revocation lists. By default `crl.pem` beside `client_ca`, if that file exists."""
    client_required: bool = False
    """True if a client without a certificate is refused."""


@dataclass(frozen=True, slots=True)
class _Expiry:
    """The lifetime of a certificate or a revocation list."""

    file: Path
    begin: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class _LoadedDoorTls:
    """A context, and facts from its files that the context does not show."""

    context: ssl.SSLContext
    stamps: tuple[Stamp, ...]
    revoked: frozenset[tuple[str, str]]
    """Issuer and serial number of each revoked certificate."""
    expiries: tuple[_Expiry, ...]


def read_peer(der: bytes) -> PeerCertificate:
    """Return the content of a client's certificate (DER). Raises PeerUnreadable."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        identity = identity_of(certificate)
        return PeerCertificate(
            issuer=certificate.issuer.rfc4514_string(),
            serial=serial_text(certificate.serial_number),
            tenant=identity.tenant,
            scopes=identity.scopes,
            not_after=certificate.not_valid_after_utc.timestamp(),
        )
    except Exception as error:  # the library raises its own errors, and TypeError, for malformed names and versions
        raise PeerUnreadable(f"the client's certificate cannot be read ({type(error).__name__})") from None


class DoorTls:
    """The door's TLS. The constructor reads every file, and raises TlsFileUnusable."""

    def __init__(self, files: TlsFiles, clock: Clock, metrics: Metrics | None = None) -> None:
        self._metrics = metrics or Metrics()
        self._files = files
        self._clock = clock
        self._crl = _crl_of(files)
        self._problem: str | None = None
        self._said: set[tuple[_Expiry, State]] = set()
        self._looked_at = clock.monotonic()
        self._loaded = self._load()
        self._measure()
        self.context = self._loaded.context
        """The context for the server's socket."""
        self.context.sni_callback = self._use_newest
        if files.client_ca is not None and self._crl is None:
            log.warning(
                "The authority of client certificates has no revocation list; accepting revoked certificates.",
                action="revocation-unchecked",
                file=str(files.client_ca),
            )
        self._warn()

    def refusal(self, peer: PeerCertificate) -> str | None:
        """Return the reason to refuse a request on an open connection with this certificate, or None."""
        self.look()
        if peer.not_after < self._clock.time():
            return "the client certificate has expired"
        if (peer.issuer, peer.serial) in self._loaded.revoked:
            return "the client certificate is revoked"
        return None

    def look(self) -> None:
        """Read the files again if one has changed since the last look, at most once a second.

        If the new files are unusable, the earlier ones stay in use. The server calls this method each second, and at
        each new connection.
        """
        now = self._clock.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        if self._stamps() != self._loaded.stamps:
            self._read_again()
        self._warn()

    def _read_again(self) -> None:
        try:
            self._loaded = self._load()
        except TlsFileUnusable as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.error(
                    "A file of certificates cannot be read again; using the certificates that were read before.",
                    action="certificates-reload-failed",
                    problem=self._problem,
                )
            return
        self._problem = None
        self._measure()
        log.info("The files of certificates have changed; using them for new connections.", action="certificates-read")

    def _use_newest(
        self, connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _listening: ssl.SSLContext
    ) -> None:
        """Continue the handshake with the newest context. OpenSSL calls also if the client sends no server name."""
        self.look()
        connection.context = self._loaded.context

    def _stamps(self) -> tuple[Stamp, ...]:
        files = (self._files.certificate, self._files.key, self._files.client_ca, self._crl)
        return tuple(stamp(path) for path in files if path is not None)

    def _load(self) -> _LoadedDoorTls:
        stamps = self._stamps()  # stamps are read first, so that the next look notices a change during the load
        files, context = self._files, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["http/1.1"])
        load_certificate(context, files.certificate, files.key)
        expiries, revoked = _certificates_in(files.certificate), frozenset[tuple[str, str]]()
        if files.client_ca is not None:
            load_authorities(context, files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED if files.client_required else ssl.CERT_OPTIONAL
            context.num_tickets = 0
            expiries += _certificates_in(files.client_ca)
        if self._crl is not None:
            revoked, ends = _lists_in(self._crl)
            load_authorities(context, self._crl)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
            expiries += ends
        return _LoadedDoorTls(context, stamps, revoked, tuple(expiries))

    def _measure(self) -> None:
        """Show as metrics, for each kind of file, the lifetime that ends first."""
        kinds = {self._files.certificate: "certificate", self._files.client_ca: "authority"}
        first: dict[str, _Expiry] = {}
        for expiry in sorted(self._loaded.expiries, key=lambda each: each.end):
            first.setdefault(kinds.get(expiry.file, "revocation_list"), expiry)
        for kind, expiry in first.items():
            self._metrics.certificate_begin.labels(kind).set(expiry.begin.timestamp())
            self._metrics.certificate_end.labels(kind).set(expiry.end.timestamp())

    def _warn(self) -> None:
        """Log once that a certificate or a list is in the last third of its life, and once that it has expired."""
        now = datetime.fromtimestamp(self._clock.time(), UTC)
        for expiry in self._loaded.expiries:
            state = state_at(now, expiry.begin, expiry.end)
            if state is State.VALID or (expiry, state) in self._said:
                continue
            self._said.add((expiry, state))
            log.warning(
                "A certificate or a revocation list has expired or expires soon; still using it.",
                action="certificates-expiring",
                file=str(expiry.file),
                expires=expiry.end.isoformat(),
                expired=state is State.EXPIRED,
            )


def _crl_of(files: TlsFiles) -> Path | None:
    if files.client_ca is None or files.client_crl is not None:
        return files.client_crl
    beside = files.client_ca.with_name(CRL_NAME)
    return beside if beside.exists() else None


def _certificates_in(path: Path) -> list[_Expiry]:
    """Return the expiry times of the certificates in a file that OpenSSL has read before. Raises TlsFileUnusable."""
    found = []
    for kind, block in _blocks(path):
        if kind != b"CERTIFICATE":
            continue
        try:
            one = x509.load_pem_x509_certificate(block)
        except (ValueError, x509.InvalidVersion):
            raise TlsFileUnusable(path, "it has a certificate that cannot be read") from None
        found.append(_Expiry(path, one.not_valid_before_utc, one.not_valid_after_utc))
    return found


def _lists_in(path: Path) -> tuple[frozenset[tuple[str, str]], list[_Expiry]]:
    """Return the revoked certificates, each as issuer and serial number, and the lists' expiry times.

    Raises TlsFileUnusable. OpenSSL would trust a certificate in this file as an authority, so the file may contain no
    certificate.
    """
    revoked: set[tuple[str, str]] = set()
    ends = []
    for kind, block in _blocks(path):
        if kind != b"X509 CRL":
            raise TlsFileUnusable(path, "it has content besides revocation lists")
        try:
            one = x509.load_pem_x509_crl(block)
            issuer = one.issuer.rfc4514_string()
            revoked.update((issuer, serial_text(entry.serial_number)) for entry in one)
        except (ValueError, TypeError, OverflowError):
            raise TlsFileUnusable(path, "it has a revocation list that cannot be read") from None
        if one.next_update_utc is not None:
            ends.append(_Expiry(path, one.last_update_utc, one.next_update_utc))
    return frozenset(revoked), ends


def _blocks(path: Path) -> list[tuple[bytes, bytes]]:
    """Return the kind and the text of each PEM block. Raises TlsFileUnusable."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TlsFileUnusable(path, os.strerror(error.errno).lower() if error.errno else "unreadable") from None
    return [(found[1], found[0]) for found in _BLOCK.finditer(content)]
