"""A private certificate authority for tests: valid and invalid certificates for servers and clients."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """An authority that signs certificates on request. The files of an authority hold key and certificate in PEM."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    name: x509.Name

    @classmethod
    def create(cls, folder: Path) -> Authority:
        authority = cls(folder, ec.generate_private_key(ec.SECP256R1()), _common_name("A private authority"))
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        builder = authority._builder(authority.name, authority.key, -_DAY, _DAY)
        certificate = builder.add_extension(constraints, critical=True).sign(authority.key, SHA256())
        authority.ca_file.write_bytes(certificate.public_bytes(Encoding.PEM))
        return authority

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    def chain_file(self, address: str = "127.0.0.1", *dns_names: str, expired: bool = False) -> Path:
        """Write a server's certificate for an IP address and DNS names."""
        ip = x509.IPAddress(ipaddress.ip_address(address))
        names = x509.SubjectAlternativeName([ip, *map(x509.DNSName, dns_names)])
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([]), key, -2 * _DAY, -_DAY if expired else _DAY)
        return self._write(
            f"server-{'-'.join((address, *dns_names))}-{expired}.pem", builder.add_extension(names, critical=True), key
        )

    def client_file(self, name: str, passphrase: bytes | None = None) -> Path:
        """Write a client's certificate for a common name."""
        key = ec.generate_private_key(ec.SECP256R1())
        encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
        return self._write(f"{name}.pem", self._builder(_common_name(name), key, -_DAY, _DAY), key, encryption)

    def server(self, chain_file: Path | None = None, *, asks_for_client: bool = False) -> ssl.SSLContext:
        """A server's TLS context; its certificate is for 127.0.0.1 unless one is named."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain_file or self.chain_file())
        if asks_for_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca_file)
        return context

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, since: datetime.timedelta, until: datetime.timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder(issuer_name=self.name, subject_name=subject, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + since)
            .not_valid_after(now + until)
        )

    def _write(
        self,
        file_name: str,
        builder: x509.CertificateBuilder,
        key: ec.EllipticCurvePrivateKey,
        encryption: KeySerializationEncryption | None = None,
    ) -> Path:
        path = self.folder / file_name
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
        path.touch(mode=0o600)
        path.write_bytes(private + builder.sign(self.key, SHA256()).public_bytes(Encoding.PEM))
        return path


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
