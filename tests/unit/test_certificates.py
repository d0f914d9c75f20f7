"""The private authority: issued, renewed and revoked certificates, and any text as a name."""

from __future__ import annotations

import re
import stat
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import example, given
from hypothesis import strategies as st

from cli.operations.certificates import (
    NAME_PATTERN,
    SCOPE_PATTERN,
    AuthorityUnusable,
    CertificateExists,
    CertificateUnknown,
    InputRefused,
    Leaf,
    LeafKind,
    Reason,
    State,
    checked_san,
    checked_scopes,
    contents,
    files_of,
    init,
    issue,
    new_authority,
    new_key,
    renew,
    renew_crl,
    revoke,
    sign_leaf,
    warnings_of,
)
from gateway.tls import PeerUnreadable, read_peer
from schemas.job import TENANT_PATTERN

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


def test_days_up_to_the_limits_are_allowed_and_beyond_them_nothing_is_written(ca: Path) -> None:
    before = (ca / "index.json").read_bytes()
    for leaf, days in ((WEB, 0), (WEB, 399), (ACME, 826), (ACME, -1), (WEB, 10**12)):
        with pytest.raises(InputRefused, match="--days"):
            issue(ca, leaf, NOW, days)
        assert (ca / "index.json").read_bytes() == before
        assert not (ca / f"{leaf.name}.key").exists()
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


def test_an_authority_with_wrong_options_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    names = (("--name", name, 10, 10) for name in ("", "a" * 65, "a\nb", " "))
    days = (("--days", "CA", days, 10) for days in (0, 7301))
    for option, name, lasts, crl_days in (*names, *days, *(("--crl-days", "CA", 10, days) for days in (0, 3651))):
        with pytest.raises(InputRefused, match=option):
            init(tmp_path / "ca", NOW, name, lasts, crl_days)
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
        ("ca.key", "another's", "the key is not the certificate's"),
        ("ca.key", 0o644, "chmod 600"),
        (".", 0o770, "chmod 700"),
        ("ca.pem", "garbage", "no certificate in PEM"),
        *((file, None, "no such file") for file in ("ca.pem", "ca.key", "index.json")),
    ],
)
def test_an_authority_that_is_damaged_or_open_to_others_is_refused_with_the_file_and_without_its_content(
    ca: Path, tmp_path: Path, file: str, content: str | int | None, problem: str
) -> None:
    if content is None:
        (ca / file).unlink()
    elif isinstance(content, int):
        (ca / file).chmod(content)
    elif content == "another's":
        init(tmp_path / "other", NOW)
        (ca / file).write_bytes((tmp_path / "other" / file).read_bytes())
    else:
        (ca / file).write_text(content, encoding="latin-1")
    with pytest.raises(AuthorityUnusable, match=problem) as refused:
        issue(ca, WEB, NOW)
    assert str(ca) in str(refused.value)
    assert "SECRET" not in str(refused.value)
    assert not (ca / "web.key").exists()


def test_a_missing_or_foreign_key_cannot_be_kept_but_a_renewal_with_a_new_one_works(ca: Path) -> None:
    issue(ca, WEB, NOW)
    for content in ("garbage", None):
        (ca / "web.key").write_text(content) if content else (ca / "web.key").unlink()
        with pytest.raises(AuthorityUnusable, match="renew with a new key"):
            renew(ca, "web", NOW, keep_key=True)
    renew(ca, "web", NOW)
    assert mode_of(ca / "web.key") == 0o600


# -- names, tenants and scopes -----------------------------------------------------------------------------------------


AUTHORITY = new_authority("Test CA", 100, NOW)
KEY = new_key().public_key()
LABELS = st.text("abz09-_é日ßİ‎­。.*%", max_size=12)
HOSTS = st.one_of(
    st.lists(LABELS, min_size=1, max_size=5).map(".".join),
    st.from_regex(r"(\*\.)?[a-zA-Z0-9-]{1,63}(\.[a-zA-Z0-9-]{1,63}){0,3}\.?", fullmatch=True),
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map("{}%eth0".format),
    st.ip_addresses(v=6).map("[{}]".format),
    st.text(max_size=20),
    st.sampled_from(["xn--", "xn--a", "xn--bcher-kva.example", "a..b", "1.2.3.256", "0x7f.1", "127.1", "*", "*.com"]),
)
SANS = st.builds("{}{}".format, st.sampled_from(["", "", "DNS:", "dns:", "IP:", "URI:", "email:"]), HOSTS)
NAMES = st.one_of(st.from_regex(NAME_PATTERN, fullmatch=True), st.text(max_size=70))


def signed(leaf: Leaf) -> x509.Certificate:
    return sign_leaf(AUTHORITY, leaf, KEY, 90, NOW)


def names_in(leaf: Leaf) -> x509.SubjectAlternativeName:
    return signed(leaf).extensions.get_extension_for_class(x509.SubjectAlternativeName).value


@given(SANS)
@example("*.*.example")
@example("DNS:127.0.0.1")
@example("IP:web.example")
@example("a.example\x00.b.example")
@example("A.EXAMPLE\n")
@example("fe80::1%1")
@example("::FFFF:1.2.3.4")
@example(f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 61}")
@example(f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 62}")
@example(f"{'a' * 64}.example")
def test_any_text_is_refused_as_a_servers_name_or_is_one_a_client_can_ask_for(text: str) -> None:
    try:
        san = checked_san(text)
    except InputRefused as refused:
        assert str(refused).startswith("--san: ")
        return
    assert checked_san(san) == san
    kind, _, value = san.partition(":")
    names = names_in(Leaf.server("web", (text,)))
    if kind == "IP":
        assert names.get_values_for_type(x509.IPAddress) == [ip_address(value)]
        return
    assert kind == "DNS"
    assert names.get_values_for_type(x509.DNSName) == [value]
    assert len(value) <= 253
    assert re.fullmatch(r"(\*\.[a-z0-9-]+\.)?([a-z0-9-]{1,63}\.)*[a-z0-9-]{1,63}", value)
    assert not re.fullmatch(r"[0-9.]+", value)  # TLS libraries would compare such a name with IP addresses only


def test_a_servers_name_has_one_normal_form_and_other_text_is_refused() -> None:
    normal = {
        "Web.Example.COM.": "DNS:web.example.com",
        "localhost": "DNS:localhost",
        "*.example.com": "DNS:*.example.com",
        "bücher.example": "DNS:xn--bcher-kva.example",
        "*.bücher.example": "DNS:*.xn--bcher-kva.example",
        "faß.example": "DNS:xn--fa-hia.example",
        "dns:a.example": "DNS:a.example",
        "127.0.0.1": "IP:127.0.0.1",
        "IP:2001:DB8::0:1": "IP:2001:db8::1",
        "::1": "IP:::1",
    }
    assert {text: checked_san(text) for text in normal} == normal
    for text in (
        *("", ".", "*", "*.com", "w*.example.com", "*.*.example.com", "a..b", "-a.example", "a-.example", "a_b"),
        *("[::1]", "::1%eth0", "1.2.3.256", "1.2.3.4/24", "https://a.example", "a.example:443", "a b", "a.example\n"),
        *("DNS:127.0.0.1", "IP:localhost", "URI:postback:tenant:acme", "email:a@example.com"),
    ):
        with pytest.raises(InputRefused, match="--san"):
            checked_san(text)


@given(NAMES)
@example("../../etc/passwd")
@example("ca")
@example("CA")
@example("index")
@example("web\n")
@example("01BFD3DE1F42D70547861DD699B706595CE8C843")
def test_any_name_is_refused_or_names_two_files_of_its_own_in_the_directory(name: str) -> None:
    try:
        leaf = Leaf.client(name, "acme")
    except InputRefused as refused:
        assert str(refused).startswith("NAME: ")
        return
    own = set(files_of(Path("/ca"), leaf.name))
    assert all(path.parent == Path("/ca") for path in own)
    assert not {str(path).lower() for path in own} & {"/ca/ca.key", "/ca/ca.pem", "/ca/crl.pem", "/ca/index.json"}
    assert signed(leaf).subject.rfc4514_string() == f"CN={name}"
    wrong = ("ca", "CA", "crl", "index", "01BFD3DE1F42D70547861DD699B706595CE8C843", ".web", "a/b", "a" * 65, "")
    for reserved in wrong:
        with pytest.raises(InputRefused, match="NAME"):
            Leaf.client(reserved, "acme")


@given(
    st.one_of(st.from_regex(TENANT_PATTERN, fullmatch=True), st.text(max_size=70)),
    st.one_of(st.lists(st.from_regex(SCOPE_PATTERN, fullmatch=True), max_size=5).map(",".join), st.text(max_size=40)),
)
@example("acme\n", "")
@example("acme", "read , submit,,read")
@example("acme,postback:tenant:other", "")
def test_any_tenant_and_scopes_are_refused_or_are_read_from_the_certificate_as_they_were(
    tenant: str, scopes: str
) -> None:
    try:
        leaf = Leaf.client("one", tenant, scopes)
    except InputRefused as refused:
        assert str(refused).startswith(("--tenant: ", "--scopes: "))
        return
    certificate = signed(leaf)
    peer = read_peer(certificate.public_bytes(Encoding.DER))
    assert (peer.tenant, peer.scopes) == (tenant, frozenset(leaf.scopes))
    assert peer.scopes == frozenset(word for word in re.split(r"[,\s]+", scopes) if word)
    assert peer.issuer == "CN=Test CA"
    assert int(peer.serial, 16) == certificate.serial_number
    assert peer.not_after == certificate.not_valid_after_utc.timestamp()


def with_uris(*uris: str) -> bytes:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
    name = AUTHORITY.certificate.subject
    builder = x509.CertificateBuilder(name, name, KEY, 1, NOW, NOW).add_extension(names, critical=False)
    return builder.sign(AUTHORITY.key, SHA256()).public_bytes(Encoding.DER)


def test_a_foreign_certificate_names_a_tenant_only_in_one_well_formed_uri() -> None:
    for uris in (
        (),
        ("postback:tenant:acme", "postback:tenant:other"),
        ("postback:tenant:",),
        ("postback:tenant:acme/../other",),
        ("POSTBACK:TENANT:acme", "https://acme.example"),
    ):
        peer = read_peer(with_uris(*uris))
        assert (peer.tenant, peer.scopes, peer.serial) == (None, frozenset(), "01"), uris
    peer = read_peer(with_uris("postback:scope:read", "postback:scope:a b", "postback:tenant:acme"))
    assert (peer.tenant, peer.scopes) == ("acme", frozenset({"read"}))


CLIENT = signed(Leaf.client("one", "acme", "read,submit")).public_bytes(Encoding.DER)


@given(st.data(), st.binary(max_size=200))
def test_a_certificate_with_any_bytes_changed_is_read_or_refused(data: st.DataObject, noise: bytes) -> None:
    der = bytearray(CLIENT)
    for place in data.draw(st.lists(st.integers(0, len(der) - 1), min_size=1, max_size=4)):
        der[place] = data.draw(st.integers(0, 255))
    try:
        read_peer(bytes(der))
    except PeerUnreadable as unreadable:
        assert "cannot be read" in str(unreadable)
    version = CLIENT.index(b"\xa0\x03\x02\x01\x02") + 4
    for other, problem in ((noise, None), (CLIENT[:version] + b"\x07" + CLIENT[version + 1 :], "InvalidVersion")):
        with pytest.raises(PeerUnreadable, match=problem):
            read_peer(other)


def test_a_servers_own_name_counts_only_where_no_other_is_given() -> None:
    leaf = Leaf.server("web", ("*.example.com", "bücher.example", "::1"))
    assert (leaf.kind, leaf.sans) == (LeafKind.SERVER, ("DNS:*.example.com", "DNS:xn--bcher-kva.example", "IP:::1"))
    assert Leaf.server("web.example").sans == ("DNS:web.example",)
    with pytest.raises(InputRefused, match="--san"):
        Leaf.server("my_server")
    assert checked_scopes("") == ()
