"""Files with authorities and client certificates: read at start, reread after replacement, and never shown."""

from __future__ import annotations

import os
import shutil
import ssl
from pathlib import Path

import pytest

from telemetry.hand_clock import SetClock
from tests.integration.certificates import Authority
from workers.delivery.settings import DeliverySettings
from workers.delivery.tls import TlsContexts
from workers.system.errors import ProcessError
from workers.system.tls_files import TlsFileUnusable


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("tls"))


def contexts(path: Path, clock: SetClock) -> TlsContexts:
    return TlsContexts(DeliverySettings(client_certificates={"acme": path}), clock)


def test_a_tenant_without_a_certificate_shares_the_context_of_all(authority: Authority, clock: SetClock) -> None:
    made = contexts(authority.client_file("acme"), clock)
    assert made.of("globex") is made.of("initech")
    assert made.of("acme") is made.of("acme")
    assert made.of("acme") is not made.of("globex")
    assert made.of("acme").minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_replaced_certificate_is_used_for_new_connections(
    authority: Authority, clock: SetClock, tmp_path: Path
) -> None:
    path = Path(shutil.copy(authority.client_file("acme"), tmp_path / "acme.pem"))
    made = contexts(path, clock)
    first = made.of("acme")
    path.unlink()
    shutil.copy(authority.client_file("new"), path)
    assert made.of("acme") is first
    clock.now += 10
    second = made.of("acme")
    assert second is not first
    clock.now += 10
    assert made.of("acme") is second


@pytest.mark.parametrize("content", ["", "half a certificate", None])
def test_a_certificate_that_breaks_while_we_run_leaves_the_old_one(
    authority: Authority, clock: SetClock, tmp_path: Path, content: str | None
) -> None:
    path = Path(shutil.copy(authority.client_file("acme"), tmp_path / "acme.pem"))
    made = contexts(path, clock)
    first = made.of("acme")
    path.unlink()
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
    clock.now += 10
    assert made.of("acme") is first
    shutil.copy(authority.client_file("new"), path)
    clock.now += 10
    assert made.of("acme") is not first


def test_a_file_that_is_no_certificate_stops_the_start_and_is_not_shown(tmp_path: Path, clock: SetClock) -> None:
    path = tmp_path / "acme.pem"
    path.write_text("SECRET")
    path.chmod(0o600)
    with pytest.raises(TlsFileUnusable) as unusable:
        contexts(path, clock)
    assert isinstance(unusable.value, ProcessError)
    assert str(path) in str(unusable.value)
    assert "SECRET" not in str(unusable.value)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_private_key_that_others_may_use_stops_the_start_with_the_fix(
    authority: Authority, clock: SetClock, tmp_path: Path, mode: int
) -> None:
    path = Path(shutil.copy(authority.client_file("acme"), tmp_path / "acme.pem"))
    if os.geteuid() == 0:
        os.chown(path, 10001, 10001)  # the owner must not be root, whose files the group may read
        with pytest.MonkeyPatch.context() as as_user:
            as_user.setattr(os, "geteuid", lambda: 10001)
            refused(path, clock, mode)
    else:
        refused(path, clock, mode)


def refused(path: Path, clock: SetClock, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(TlsFileUnusable, match=f"chmod 600 {path}"):
        contexts(path, clock)
    path.chmod(0o600)
    contexts(path, clock)


def test_a_private_key_of_another_user_stops_the_start_unless_the_user_is_root(
    authority: Authority, clock: SetClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(authority.client_file("acme"), tmp_path / "acme.pem"))
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        path.chmod(0o440)  # a Secret has this mode in a pod that does not run as root
        contexts(path, clock)
        os.chown(path, 10001, 10001)
    path.chmod(0o600)
    with pytest.raises(TlsFileUnusable, match="belongs to user"):
        contexts(path, clock)


def test_a_key_that_becomes_readable_for_others_is_reported_and_the_old_one_stays(
    authority: Authority, clock: SetClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(shutil.copy(authority.client_file("acme"), tmp_path / "acme.pem"))
    made = contexts(path, clock)
    first = made.of("acme")
    path.chmod(0o644)
    clock.now += 10
    assert made.of("acme") is first
    assert "open to other users" in caplog.text


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(authority: Authority, clock: SetClock) -> None:
    with pytest.raises(TlsFileUnusable, match="passphrase"):
        contexts(authority.client_file("locked", b"open sesame"), clock)


def test_replaced_authorities_are_trusted_by_new_connections_of_all_tenants(
    authority: Authority, clock: SetClock, tmp_path: Path
) -> None:
    path = Path(shutil.copy(authority.ca_file, tmp_path / "ca.pem"))
    settings = DeliverySettings(ca_file=path, client_certificates={"acme": authority.client_file("acme")})
    made = TlsContexts(settings, clock)
    first = {tenant: made.of(tenant) for tenant in ("acme", "globex")}
    (tmp_path / "other").mkdir()
    other = Authority.create(tmp_path / "other")
    path.unlink()
    shutil.copy(other.ca_file, path)
    assert {tenant: made.of(tenant) for tenant in first} == first
    clock.now += 10
    for tenant, before in first.items():
        after = made.of(tenant)
        new = [known for known in after.get_ca_certs(binary_form=True) if known not in before.get_ca_certs(True)]
        assert new == [ssl.PEM_cert_to_DER_cert(other.ca_file.read_text())]
        assert made.of(tenant) is after
    assert made.of("globex") is made.of("initech")


@pytest.mark.parametrize("content", ["half an authority", None])
def test_authorities_that_break_while_we_run_leave_the_old_ones_and_are_reported_once(
    authority: Authority, clock: SetClock, tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(shutil.copy(authority.ca_file, tmp_path / "ca.pem"))
    made = TlsContexts(DeliverySettings(ca_file=path), clock)
    first = made.of("globex")
    path.unlink()
    if content is not None:
        path.write_text(content)
    for _ in range(3):
        clock.now += 10
        assert made.of("globex") is first
    assert sum("cannot be read again" in record.getMessage() for record in caplog.records) == 1


def test_an_invalid_authority_stops_the_start(tmp_path: Path, clock: SetClock) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("nothing")
    with pytest.raises(TlsFileUnusable):
        TlsContexts(DeliverySettings(ca_file=path), clock)


def test_a_file_that_is_not_there_is_named_by_its_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_DELIVERY__CLIENT_CERTIFICATES", f'{{"acme": "{tmp_path}/absent.pem"}}')
    with pytest.raises(ValueError, match="client_certificates"):
        DeliverySettings()
