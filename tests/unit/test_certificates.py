"""An authority's directory: issued, renewed and revoked certificates, their durations, and refused states."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from operators.certificates import (
    AuthorityUnusable,
    CertificateExists,
    CertificateUnknown,
    InputRefused,
    Leaf,
    Reason,
    State,
    contents,
    init,
    issue,
    renew,
    renew_crl,
    revoke,
    warnings_of,
)

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SKEW = timedelta(minutes=5)
WEB = Leaf.server("web", ("web.example", "127.0.0.1"))
ACME = Leaf.client("acme-1", "acme", "read,submit")


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    directory = tmp_path / "ca"
    init(directory, NOW)
    return directory


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def crl_of(directory: Path) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl((directory / "crl.pem").read_bytes())


def revoked_in(directory: Path) -> dict[int, str | None]:
    found: dict[int, str | None] = {}
    for one in crl_of(directory):
        try:
            found[one.serial_number] = one.extensions.get_extension_for_class(x509.CRLReason).value.reason.value
        except x509.ExtensionNotFound:
            found[one.serial_number] = None
    return found


def number_of(directory: Path) -> int:
    return crl_of(directory).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def said(directory: Path, now: datetime) -> list[str]:
    return list(warnings_of(contents(directory), directory, now))


def test_an_authority_signs_leaves_and_lists_only_and_its_files_are_closed_to_others(ca: Path) -> None:
    certificate = read(ca / "ca.pem")
    extensions = certificate.extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    identifier = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    named = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert identifier.digest == named.key_identifier
    assert certificate.not_valid_before_utc == NOW - SKEW
    assert certificate.not_valid_after_utc == NOW - SKEW + 3650 * DAY - timedelta(seconds=1)
    certificate.verify_directly_issued_by(certificate)
    issue(ca, WEB, NOW)
    modes = {path.name: mode_of(path) for path in (ca, *ca.iterdir())}
    assert modes == {
        "ca": 0o700,
        **dict.fromkeys(("ca.key", "index.json", "web.key"), 0o600),
        **dict.fromkeys(("ca.pem", "crl.pem", "web.pem"), 0o644),
    }
    assert (number_of(ca), revoked_in(ca), crl_of(ca).next_update_utc) == (0, {}, NOW + 180 * DAY)


@pytest.mark.parametrize(
    ("leaf", "usage", "names"),
    [
        (WEB, ExtendedKeyUsageOID.SERVER_AUTH, ["web.example", "127.0.0.1"]),
        (
            ACME,
            ExtendedKeyUsageOID.CLIENT_AUTH,
            ["postback:tenant:acme", "postback:scope:read", "postback:scope:submit"],
        ),
    ],
)
def test_a_leaf_has_its_usage_its_names_and_ninety_days(
    ca: Path, leaf: Leaf, usage: x509.ObjectIdentifier, names: list[str]
) -> None:
    issued = issue(ca, leaf, NOW)
    certificate, authority = read(issued.certificate), read(ca / "ca.pem")
    extensions = certificate.extensions
    certificate.verify_directly_issued_by(authority)
    assert extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(False, None)
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
    found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in found] == names
    assert certificate.subject.rfc4514_string() == f"CN={leaf.name}"
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == 90 * DAY - timedelta(seconds=1)
    assert certificate.not_valid_before_utc == NOW - SKEW
    assert certificate.serial_number.bit_length() > 64
    assert issued.entry.serial == f"{certificate.serial_number:040X}"[-len(issued.entry.serial) :]
    assert not issued.is_shortened


def test_no_leaf_ends_after_its_authority_and_an_expired_authority_signs_nothing(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    init(ca, NOW, days=30)
    issued = issue(ca, WEB, NOW)
    assert issued.is_shortened
    assert read(issued.certificate).not_valid_after_utc == read(ca / "ca.pem").not_valid_after_utc
    assert renew(ca, "web", NOW, days=29).is_shortened is False
    late = NOW + 31 * DAY
    for operation in (
        lambda: issue(ca, ACME, late),
        lambda: renew(ca, "web", late),
        lambda: revoke(ca, "web", late),
        lambda: renew_crl(ca, late),
    ):
        with pytest.raises(AuthorityUnusable, match="the authority expired on 2026-12-27"):
            operation()
    assert [one for one in said(ca, late) if "the authority expired 1 day ago" in one]


@pytest.mark.parametrize(("leaf", "days"), [(WEB, 0), (WEB, 399), (ACME, 826), (ACME, -1), (WEB, 10**12)], ids=str)
def test_days_beyond_the_limits_are_refused_and_nothing_is_written(ca: Path, leaf: Leaf, days: int) -> None:
    before = (ca / "index.json").read_bytes()
    with pytest.raises(InputRefused, match="--days"):
        issue(ca, leaf, NOW, days)
    assert (ca / "index.json").read_bytes() == before
    assert not (ca / f"{leaf.name}.key").exists()


def test_the_longest_lifetimes_are_allowed(ca: Path) -> None:
    assert issue(ca, WEB, NOW, 398).entry.not_after < NOW + 398 * DAY
    assert issue(ca, ACME, NOW, 825).entry.not_after < NOW + 825 * DAY


def test_a_renewal_keeps_names_and_days_and_has_a_new_key_and_serial_number(ca: Path) -> None:
    first = issue(ca, WEB, NOW, 40)
    old, old_key = read(first.certificate), first.key.read_bytes()
    second = renew(ca, "web", NOW + 30 * DAY)
    new = read(second.certificate)
    assert (new.subject, new.serial_number == old.serial_number) == (old.subject, False)
    for kind in (x509.SubjectAlternativeName, x509.ExtendedKeyUsage):
        assert new.extensions.get_extension_for_class(kind) == old.extensions.get_extension_for_class(kind)
    assert new.not_valid_after_utc == old.not_valid_after_utc + 30 * DAY
    assert new.public_key() != old.public_key()
    assert second.key.read_bytes() != old_key
    assert revoked_in(ca) == {}
    third = renew(ca, "web", NOW + 30 * DAY, keep_key=True)
    assert read(third.certificate).public_key() == new.public_key()


def test_a_renewal_revokes_the_earlier_certificates_if_asked(ca: Path) -> None:
    serials = [int(issue(ca, ACME, NOW).entry.serial, 16), int(renew(ca, "acme-1", NOW).entry.serial, 16)]
    renewed = renew(ca, "acme-1", NOW, revoke_old=True)
    assert [int(one.serial, 16) for one in renewed.revoked] == serials
    assert revoked_in(ca) == dict.fromkeys(serials, "superseded")


def test_a_name_in_use_is_not_issued_again_but_one_that_expired_or_was_revoked_is(ca: Path) -> None:
    issue(ca, WEB, NOW)
    with pytest.raises(CertificateExists, match="renew it or revoke it first"):
        issue(ca, ACME.model_copy(update={"name": "web"}), NOW)
    revoke(ca, "web", NOW)
    with pytest.raises(CertificateUnknown, match="is revoked since"):
        renew(ca, "web", NOW)
    issue(ca, WEB, NOW)
    issue(ca, WEB, NOW + 91 * DAY)
    renew(ca, "web", NOW + 300 * DAY)


def test_a_file_that_the_authority_did_not_make_is_not_overwritten(ca: Path) -> None:
    for name in ("web.key", "web.pem"):
        (ca / name).write_text("precious")
        with pytest.raises(CertificateExists, match=name):
            issue(ca, WEB, NOW)
        assert (ca / name).read_text() == "precious"
        (ca / name).unlink()


def test_a_revocation_is_by_name_or_by_serial_number_in_any_notation(ca: Path) -> None:
    first, second = issue(ca, ACME, NOW).entry, renew(ca, "acme-1", NOW).entry
    other = issue(ca, WEB, NOW).entry
    colons = ":".join(first.serial[place : place + 2] for place in range(0, len(first.serial), 2))
    assert [one.serial for one in revoke(ca, colons.lower(), NOW, Reason.KEY_COMPROMISE)] == [first.serial]
    assert (number_of(ca), revoked_in(ca)) == (1, {int(first.serial, 16): "keyCompromise"})
    assert revoke(ca, f"0x{first.serial}", NOW) == ()
    assert [one.serial for one in revoke(ca, "acme-1", NOW)] == [second.serial]
    assert (number_of(ca), revoked_in(ca)[int(second.serial, 16)]) == (2, None)
    states = {one.serial: one.state(NOW) for one in contents(ca).index.certificates}
    assert states == {first.serial: State.REVOKED, second.serial: State.REVOKED, other.serial: State.VALID}
    for unknown in ("nobody", "00", "", "FFFF", ":"):
        with pytest.raises(CertificateUnknown):
            revoke(ca, unknown, NOW)


def test_a_revoked_certificate_leaves_the_list_a_day_after_it_has_expired(ca: Path) -> None:
    serial = int(issue(ca, ACME, NOW).entry.serial, 16)
    revoke(ca, "acme-1", NOW)
    for days, listed in ((89, [serial]), (90.5, [serial]), (92, [])):
        assert [one.serial_number for one in renew_crl(ca, NOW + days * DAY)] == listed


def test_a_list_is_signed_again_by_its_command_and_by_each_signature_in_its_last_third(ca: Path) -> None:
    assert renew_crl(ca, NOW, days=90).next_update_utc == NOW + 90 * DAY
    issue(ca, WEB, NOW + 50 * DAY)
    assert number_of(ca) == 1
    assert said(ca, NOW + 50 * DAY) == []
    assert "next update is due in 28 days: sign it again with" in said(ca, NOW + 62 * DAY)[0]
    assert "refuses every client certificate" in said(ca, NOW + 91 * DAY)[0]
    issue(ca, ACME, NOW + 62 * DAY)
    assert (number_of(ca), crl_of(ca).next_update_utc) == (2, NOW + 152 * DAY)


def test_a_list_that_is_missing_or_behind_the_index_is_mended_by_the_next_signature(ca: Path) -> None:
    issue(ca, WEB, NOW)
    serial = int(issue(ca, ACME, NOW).entry.serial, 16)
    old = (ca / "crl.pem").read_bytes()
    revoke(ca, "acme-1", NOW)
    for content in (old, b"garbage", b"", None):
        (ca / "crl.pem").unlink() if content is None else (ca / "crl.pem").write_bytes(content)
        assert len(said(ca, NOW)) == 1
        renew(ca, "web", NOW)
        assert list(revoked_in(ca)) == [serial]
        assert said(ca, NOW) == []


def test_only_the_newest_certificate_of_a_name_gives_a_warning(ca: Path) -> None:
    issue(ca, WEB, NOW)
    assert said(ca, NOW + 59 * DAY) == []
    [expiring] = said(ca, NOW + 61 * DAY)
    assert expiring == f"web expires in 28 days: `postback certs renew {ca} web`"
    renew(ca, "web", NOW + 61 * DAY)
    assert said(ca, NOW + 61 * DAY) == []
    assert "web expired 9 days ago" in said(ca, NOW + 160 * DAY)[-1]
    assert "the authority expires in 49 days" in said(ca, NOW + 3600 * DAY)[0]


@pytest.mark.parametrize(
    ("name", "days", "crl_days", "option"),
    [
        ("", 10, 10, "--name"),
        ("a" * 65, 10, 10, "--name"),
        ("a\nb", 10, 10, "--name"),
        (" ", 10, 10, "--name"),
        ("CA", 0, 10, "--days"),
        ("CA", 7301, 10, "--days"),
        ("CA", 10, 0, "--crl-days"),
        ("CA", 10, 3651, "--crl-days"),
    ],
)
def test_an_authority_with_wrong_options_is_refused_before_anything_is_made(
    tmp_path: Path, name: str, days: int, crl_days: int, option: str
) -> None:
    with pytest.raises(InputRefused, match=option):
        init(tmp_path / "ca", NOW, name, days, crl_days)
    assert not (tmp_path / "ca").exists()


def test_an_authority_is_made_in_an_empty_directory_and_never_over_anything(tmp_path: Path, ca: Path) -> None:
    (tmp_path / "empty").mkdir(mode=0o755)
    init(tmp_path / "empty", NOW, "Ünïcode CA")
    assert mode_of(tmp_path / "empty") == 0o700
    (tmp_path / "full").mkdir(mode=0o755)
    (tmp_path / "full" / "letter").write_text("x")
    (tmp_path / "file").write_text("x")
    before = {path.name: path.read_bytes() for path in ca.iterdir()}
    for directory, problem in (
        ("ca", "holds an authority"),
        ("full", "not empty"),
        ("file", "exists"),
        ("file/ca", "not"),
    ):
        with pytest.raises(AuthorityUnusable, match=problem):
            init(tmp_path / directory, NOW)
    assert mode_of(tmp_path / "full") == 0o755
    assert {path.name: path.read_bytes() for path in ca.iterdir()} == before
    issue(ca, WEB, NOW)
    (ca / "ca.pem").unlink()
    (ca / "ca.key").rename(tmp_path / "offline.key")
    with pytest.raises(AuthorityUnusable, match="not empty"):
        init(ca, NOW)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("index.json", "{", "no index of certificates"),
        ("index.json", '{"format": 2}', "no index of certificates: format"),
        ("index.json", "\xff", "no index of certificates"),
        ("index.json", '{"certificates": [{"name": "../x", "kind": "server"}]}', "certificates.0.name"),
        ("ca.key", "SECRET", "no private key in PEM"),
        ("ca.pem", "garbage", "no certificate in PEM"),
        ("ca.pem", None, "no such file"),
        ("ca.key", None, "no such file"),
        ("index.json", None, "no such file"),
    ],
)
def test_a_damaged_authority_is_refused_with_the_file_and_without_its_content(
    ca: Path, file: str, content: str | None, problem: str
) -> None:
    if content is None:
        (ca / file).unlink()
    else:
        (ca / file).write_text(content, encoding="latin-1")
    with pytest.raises(AuthorityUnusable, match=problem) as refused:
        issue(ca, WEB, NOW)
    assert str(ca) in str(refused.value)
    assert "SECRET" not in str(refused.value)
    assert not (ca / "web.key").exists()


def test_the_key_of_another_authority_is_refused(ca: Path, tmp_path: Path) -> None:
    init(tmp_path / "other", NOW)
    (ca / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(AuthorityUnusable, match="the key is not the certificate's"):
        issue(ca, WEB, NOW)


@pytest.mark.parametrize(("path", "mode", "fix"), [(".", 0o770, "chmod 700"), ("ca.key", 0o644, "chmod 600")])
def test_an_authority_that_others_could_use_is_refused_with_the_fix(ca: Path, path: str, mode: int, fix: str) -> None:
    (ca / path).chmod(mode)
    with pytest.raises(AuthorityUnusable, match=fix):
        issue(ca, WEB, NOW)


def test_a_missing_or_foreign_key_cannot_be_kept_but_a_renewal_with_a_new_one_works(ca: Path) -> None:
    issue(ca, WEB, NOW)
    for content in ("garbage", None):
        (ca / "web.key").write_text(content) if content else (ca / "web.key").unlink()
        with pytest.raises(AuthorityUnusable, match="renew with a new key"):
            renew(ca, "web", NOW, keep_key=True)
    renew(ca, "web", NOW)
    assert mode_of(ca / "web.key") == 0o600
