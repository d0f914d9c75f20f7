"""A client certificate as a request's credential: the principal that it gives, and when it is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.client_certificates import ClientCertificates, agreed
from gateway.access.principal import DEFAULT_SCOPES, CredentialRefused, Principal, Scope
from gateway.tls import LOOK_SECONDS, DoorTls, TlsFiles
from operators.certificates import Leaf, init, issue, revoke
from telemetry.clock import SystemClock
from telemetry.hand_clock import SetClock

NOW = datetime.fromtimestamp(SystemClock().time(), UTC)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    directory = tmp_path / "ca"
    init(directory, NOW)
    issue(directory, Leaf.server("web", ("localhost",)), NOW)
    return directory


def client(ca: Path, scopes: str = "read,submit", name: str = "one") -> bytes:
    pem = issue(ca, Leaf.client(name, "acme", scopes), NOW).certificate.read_bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def test_a_certificate_gives_its_tenant_and_the_scopes_that_the_gateway_knows(ca: Path) -> None:
    found = ClientCertificates(None).principal(client(ca, "read,submit,future:scope"))
    assert found is not None
    assert (found.tenant, found.kind) == ("acme", "certificate")
    assert found.scopes == {Scope.READ, Scope.SUBMIT}
    serial = x509.load_pem_x509_certificate((ca / "one.pem").read_bytes()).serial_number
    assert int(found.credential.removeprefix("cert:"), 16) == serial


def test_a_certificate_without_scopes_has_those_of_a_new_key_and_one_without_a_tenant_gives_no_principal(
    ca: Path,
) -> None:
    certificates = ClientCertificates(None)
    found = certificates.principal(client(ca, ""))
    assert found is not None
    assert found.scopes == DEFAULT_SCOPES
    unknown = certificates.principal(client(ca, "future:scope", "two"))
    assert unknown is not None
    assert unknown.scopes == frozenset()
    server = x509.load_pem_x509_certificate((ca / "web.pem").read_bytes()).public_bytes(Encoding.DER)
    assert certificates.principal(server) is None


def test_a_certificate_is_refused_once_it_is_revoked_or_has_expired_on_an_open_connection(ca: Path) -> None:
    clock, der, other = SetClock(NOW.timestamp()), client(ca), client(ca, name="two")
    certificates = ClientCertificates(DoorTls(TlsFiles(ca / "web.pem", ca / "web.key", ca / "ca.pem"), clock))
    assert certificates.principal(der) is not None
    revoke(ca, "one", NOW)
    clock.now += LOOK_SECONDS
    with pytest.raises(CredentialRefused, match="revoked"):
        certificates.principal(der)
    assert certificates.principal(other) is not None
    clock.now += timedelta(days=90).total_seconds()
    with pytest.raises(CredentialRefused, match="expired"):
        certificates.principal(other)


def test_a_key_and_a_certificate_in_one_request_are_of_one_tenant() -> None:
    def of(tenant: str, kind: str) -> Principal:
        return Principal(tenant, f"{kind}:1", "api_key", frozenset())

    assert agreed(None, of("acme", "key")) == of("acme", "key")
    assert agreed(of("acme", "cert"), of("acme", "key")) == of("acme", "key")
    with pytest.raises(CredentialRefused, match="different tenants"):
        agreed(of("acme", "cert"), of("globex", "key"))


@given(st.binary(max_size=100))
def test_bytes_that_are_no_certificate_are_refused_as_a_credential(der: bytes) -> None:
    with pytest.raises(CredentialRefused, match="cannot be read"):
        ClientCertificates(None).principal(der)
