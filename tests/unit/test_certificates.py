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
    CertificatesError,
    InputRefused,
    Leaf,
    LeafKind,
    State,
    contents,
    init,
    issue,
    new_authority,
    new_key,
    renew,
    revoke,
    sign_leaf,
    state_at,
)
from gateway.tls import PeerUnreadable, read_peer
from schemas.job import TENANT_PATTERN

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SKEW = timedelta(minutes=5)
WEB = Leaf.server("web", ("web.example", "127.0.0.1"))
ACME = Leaf.client("acme-1", "acme", ("submit", "read"))


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


def revoked_in(directory: Path) -> set[int]:
    return {one.serial_number for one in crl_of(directory)}


def number_of(directory: Path) -> int:
    return crl_of(directory).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


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
        "issued": 0o700,
        **dict.fromkeys(("ca.key", "web.key"), 0o600),
        **dict.fromkeys(("ca.pem", "crl.pem", "web.pem"), 0o644),
    }
    assert (number_of(ca), revoked_in(ca)) == (0, set())
    assert crl_of(ca).next_update_utc == certificate.not_valid_after_utc


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


def test_no_leaf_ends_after_its_authority_and_an_expired_authority_signs_nothing(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    init(ca, NOW, days=30)
    assert read(issue(ca, WEB, NOW).certificate).not_valid_after_utc == read(ca / "ca.pem").not_valid_after_utc
    assert read(renew(ca, "web", NOW, days=29).certificate).not_valid_after_utc < NOW + 29 * DAY
    late = NOW + 31 * DAY
    for operation in (lambda: issue(ca, ACME, late), lambda: renew(ca, "web", late), lambda: revoke(ca, "web", late)):
        with pytest.raises(CertificatesError, match="the authority expired on 2026-12-27"):
            operation()


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
    assert revoked_in(ca) == set()


def test_a_name_in_use_is_not_issued_again_but_one_that_expired_or_was_revoked_is(ca: Path) -> None:
    issue(ca, WEB, NOW)
    with pytest.raises(CertificatesError, match="renew it or revoke it first"):
        issue(ca, Leaf.client("web", "acme"), NOW)
    revoke(ca, "web", NOW)
    with pytest.raises(CertificatesError, match="is revoked; issue"):
        renew(ca, "web", NOW)
    issue(ca, WEB, NOW)
    issue(ca, WEB, NOW + 91 * DAY)
    renew(ca, "web", NOW + 300 * DAY)


def test_a_file_that_the_authority_did_not_make_is_not_overwritten(ca: Path) -> None:
    for name in ("web.key", "web.pem"):
        (ca / name).write_text("precious")
        with pytest.raises(CertificatesError, match=name):
            issue(ca, WEB, NOW)
        assert (ca / name).read_text() == "precious"
        (ca / name).unlink()


def test_a_revocation_ends_all_valid_certificates_of_a_name_and_keeps_earlier_revocations(ca: Path) -> None:
    first, second = issue(ca, ACME, NOW).entry, renew(ca, "acme-1", NOW + DAY).entry
    other = issue(ca, WEB, NOW).entry
    assert [one.serial for one in revoke(ca, "acme-1", NOW + DAY)] == [first.serial, second.serial]
    assert (number_of(ca), revoked_in(ca)) == (1, {int(first.serial, 16), int(second.serial, 16)})
    assert revoke(ca, "acme-1", NOW + DAY) == ()
    third = issue(ca, ACME, NOW + DAY).entry
    states = {one.serial: one.state(NOW + DAY) for one in contents(ca).issued}
    revoked = dict.fromkeys((first.serial, second.serial), State.REVOKED)
    assert states == {**revoked, **dict.fromkeys((other.serial, third.serial), State.VALID)}
    assert [one.serial for one in revoke(ca, "web", NOW + DAY)] == [other.serial]
    assert (number_of(ca), len(revoked_in(ca))) == (2, 3)
    authority = read(ca / "ca.pem")
    assert crl_of(ca).is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    assert crl_of(ca).next_update_utc == authority.not_valid_after_utc
    with pytest.raises(CertificatesError, match="no certificate of the name 'nobody'"):
        revoke(ca, "nobody", NOW)


def test_an_object_is_expiring_in_the_last_third_of_its_life_and_in_its_last_half_year() -> None:
    for days, lasts, state in (
        *((90, 59, State.VALID), (90, 61, State.EXPIRING), (90, 91, State.EXPIRED)),
        *((3650, 3469, State.VALID), (3650, 3471, State.EXPIRING)),
    ):
        assert state_at(NOW + lasts * DAY, NOW, NOW + days * DAY) is state, (days, lasts)


def test_an_authority_with_a_wrong_name_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    for name in ("", "a" * 65, "a\nb", " "):
        with pytest.raises(InputRefused, match="--name"):
            init(tmp_path / "ca", NOW, name)
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
        with pytest.raises(CertificatesError, match=problem):
            init(tmp_path / directory, NOW)
    assert mode_of(tmp_path / "full") == 0o755
    assert {path.name: path.read_bytes() for path in ca.iterdir()} == before
    issue(ca, WEB, NOW)
    (ca / "ca.pem").unlink()
    (ca / "ca.key").rename(tmp_path / "offline.key")
    with pytest.raises(CertificatesError, match="not empty"):
        init(ca, NOW)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("ca.key", "SECRET", "no private key in PEM"),
        ("ca.key", "another's", "the key is not the certificate's"),
        ("crl.pem", "another's", "the list is not the authority's"),
        ("ca.key", 0o644, "chmod 600"),
        (".", 0o770, "chmod 700"),
        *((file, "garbage", "no certificate or list in PEM") for file in ("ca.pem", "crl.pem", "issued/x.pem")),
        *((file, None, "no such file") for file in ("ca.pem", "ca.key", "crl.pem")),
    ],
)
def test_an_authority_that_is_damaged_or_open_to_others_is_refused_with_the_file_and_without_its_content(
    ca: Path, tmp_path: Path, file: str, content: str | int | None, problem: str
) -> None:
    (ca / "issued").mkdir()
    if content is None:
        (ca / file).unlink()
    elif isinstance(content, int):
        (ca / file).chmod(content)
    elif content == "another's":
        init(tmp_path / "other", NOW)
        (ca / file).write_bytes((tmp_path / "other" / file).read_bytes())
    else:
        (ca / file).write_text(content, encoding="latin-1")
    with pytest.raises(CertificatesError, match=problem) as refused:
        issue(ca, WEB, NOW)
    assert str(ca) in str(refused.value)
    assert "SECRET" not in str(refused.value)
    assert not (ca / "web.key").exists()


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
NAMES = st.one_of(st.from_regex(NAME_PATTERN, fullmatch=True), st.text(max_size=70))


def signed(leaf: Leaf) -> x509.Certificate:
    return sign_leaf(AUTHORITY, leaf, KEY, 90, NOW)


def names_in(leaf: Leaf) -> x509.SubjectAlternativeName:
    return signed(leaf).extensions.get_extension_for_class(x509.SubjectAlternativeName).value


@given(HOSTS)
@example("*.*.example")
@example("a.example\x00.b.example")
@example("A.EXAMPLE\n")
@example("fe80::1%1")
@example("::FFFF:1.2.3.4")
@example(f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 61}")
@example(f"{'a' * 63}.{'b' * 63}.{'c' * 63}.{'d' * 62}")
@example(f"{'a' * 64}.example")
def test_any_text_is_refused_as_a_servers_name_or_is_one_a_client_can_ask_for(text: str) -> None:
    try:
        leaf = Leaf.server("web", (text,))
    except InputRefused as refused:
        assert str(refused).startswith("--san: ")
        return
    [san] = leaf.sans
    assert Leaf.server("web", (san,)) == leaf
    names = names_in(leaf)
    if names.get_values_for_type(x509.IPAddress) == []:
        assert names.get_values_for_type(x509.DNSName) == [san]
        assert len(san) <= 253
        assert re.fullmatch(r"(\*\.[a-z0-9-]+\.)?([a-z0-9-]{1,63}\.)*[a-z0-9-]{1,63}", san)
        assert not re.fullmatch(r"[0-9.]+", san)  # TLS libraries would compare such a name with IP addresses only
    else:
        assert names.get_values_for_type(x509.IPAddress) == [ip_address(text)]


def test_a_servers_name_has_one_normal_form_and_other_text_is_refused() -> None:
    normal = {
        "Web.Example.COM": "web.example.com",
        "localhost": "localhost",
        "*.example.com": "*.example.com",
        "xn--bcher-kva.example": "xn--bcher-kva.example",
        "127.0.0.1": "127.0.0.1",
        "2001:DB8::0:1": "2001:db8::1",
        "::1": "::1",
    }
    assert {text: Leaf.server("web", (text,)).sans for text in normal} == {text: [san] for text, san in normal.items()}
    for text in (
        *("", ".", "*", "*.com", "w*.example.com", "*.*.example.com", "a..b", "-a.example", "a-.example", "a_b"),
        *("[::1]", "::1%eth0", "1.2.3.256", "1.2.3.4/24", "https://a.example", "a.example:443", "a b", "a.example\n"),
        *("DNS:a.example", "URI:postback:tenant:acme", "email:a@example.com", "bücher.example", "a.example."),
    ):
        with pytest.raises(InputRefused, match="--san"):
            Leaf.server("web", (text,))


@given(NAMES)
@example("../../etc/passwd")
@example("ca")
@example("CA")
@example("index")
@example("web\n")
def test_any_name_is_refused_or_names_two_files_of_its_own_in_the_directory(name: str) -> None:
    try:
        leaf = Leaf.client(name, "acme")
    except InputRefused as refused:
        assert str(refused).startswith("NAME: ")
        return
    own = {Path("/ca") / f"{leaf.name}{suffix}" for suffix in (".key", ".pem")}
    assert all(path.parent == Path("/ca") for path in own)
    assert not {str(path).lower() for path in own} & {"/ca/ca.key", "/ca/ca.pem", "/ca/crl.pem"}
    assert signed(leaf).subject.rfc4514_string() == f"CN={name}"
    for reserved in ("ca", "CA", "crl", ".web", "a/b", "a" * 65, ""):
        with pytest.raises(InputRefused, match="NAME"):
            Leaf.client(reserved, "acme")


@given(
    st.one_of(st.from_regex(TENANT_PATTERN, fullmatch=True), st.text(max_size=70)),
    st.sets(st.sampled_from(["read", "submit", "jobs:read"])),
)
@example("acme\n", set())
@example("acme,postback:tenant:other", set())
def test_any_tenant_is_refused_or_is_read_from_the_certificate_as_it_was(tenant: str, scopes: set[str]) -> None:
    try:
        leaf = Leaf.client("one", tenant, scopes)
    except InputRefused as refused:
        assert str(refused).startswith("--tenant: ")
        return
    certificate = signed(leaf)
    peer = read_peer(certificate.public_bytes(Encoding.DER))
    assert peer.tenant == tenant
    assert peer.scopes == scopes
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
    peer = read_peer(with_uris("postback:scope:read", "postback:scopes:all", "postback:tenant:acme"))
    assert (peer.tenant, peer.scopes) == ("acme", frozenset({"read"}))


CLIENT = signed(Leaf.client("one", "acme", ("read", "submit"))).public_bytes(Encoding.DER)


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
    leaf = Leaf.server("web", ("*.example.com", "::1"))
    assert (leaf.kind, leaf.sans) == (LeafKind.SERVER, ["*.example.com", "::1"])
    assert Leaf.server("web.example").sans == ["web.example"]
    with pytest.raises(InputRefused, match="--san"):
        Leaf.server("my_server")
