"""Any text as a name, a tenant or a scope: the text is refused, or the certificate carries it unchanged."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.tls import PeerUnreadable, read_peer
from operators.certificates import InputRefused, Leaf, LeafKind
from operators.certificates.authority import new_authority, new_key
from operators.certificates.files import AuthorityFiles
from operators.certificates.issuing import sign_leaf
from operators.certificates.names import NAME_PATTERN, SCOPE_PATTERN, checked_san, checked_scopes
from schemas.job import TENANT_PATTERN

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
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


@pytest.mark.parametrize(
    ("text", "san"),
    [
        ("Web.Example.COM.", "DNS:web.example.com"),
        ("localhost", "DNS:localhost"),
        ("*.example.com", "DNS:*.example.com"),
        ("bücher.example", "DNS:xn--bcher-kva.example"),
        ("*.bücher.example", "DNS:*.xn--bcher-kva.example"),
        ("faß.example", "DNS:xn--fa-hia.example"),
        ("dns:a.example", "DNS:a.example"),
        ("127.0.0.1", "IP:127.0.0.1"),
        ("IP:2001:DB8::0:1", "IP:2001:db8::1"),
        ("::1", "IP:::1"),
    ],
)
def test_a_servers_name_has_one_normal_form(text: str, san: str) -> None:
    assert checked_san(text) == san


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "*", "*.com", "w*.example.com", "*.*.example.com", "a..b", "-a.example", "a-.example", "a_b"),
        *("[::1]", "::1%eth0", "1.2.3.256", "1.2.3.4/24", "https://a.example", "a.example:443", "a b", "a.example\n"),
        *("DNS:127.0.0.1", "IP:localhost", "URI:postback:tenant:acme", "email:a@example.com"),
    ],
)
def test_other_text_is_refused_as_a_servers_name(text: str) -> None:
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
    files = AuthorityFiles(Path("/ca"))
    own = {files.certificate_of(leaf.name), files.key_of(leaf.name)}
    assert all(path.parent == files.directory for path in own)
    assert not {str(path).lower() for path in own} & {"/ca/ca.key", "/ca/ca.pem", "/ca/crl.pem", "/ca/index.json"}
    assert signed(leaf).subject.rfc4514_string() == f"CN={name}"


def test_a_name_that_the_authority_needs_or_that_looks_like_a_serial_number_is_refused() -> None:
    for name in ("ca", "CA", "crl", "index", "01BFD3DE1F42D70547861DD699B706595CE8C843", ".web", "a/b", "a" * 65, ""):
        with pytest.raises(InputRefused, match="NAME"):
            Leaf.client(name, "acme")


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
    assert (peer.subject, peer.issuer) == ("CN=one", "CN=Test CA")
    assert int(peer.serial, 16) == certificate.serial_number
    assert peer.not_after == certificate.not_valid_after_utc.timestamp()


def with_uris(*uris: str) -> bytes:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
    name = AUTHORITY.certificate.subject
    builder = x509.CertificateBuilder(name, name, KEY, 1, NOW, NOW).add_extension(names, critical=False)
    return builder.sign(AUTHORITY.key, SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("uris", "tenant", "scopes"),
    [
        ((), None, set()),
        (("postback:tenant:acme", "postback:tenant:other"), None, set()),
        (("postback:tenant:",), None, set()),
        (("postback:tenant:acme/../other",), None, set()),
        (("POSTBACK:TENANT:acme", "https://acme.example"), None, set()),
        (("postback:scope:read", "postback:scope:a b", "postback:tenant:acme"), "acme", {"read"}),
    ],
)
def test_a_foreign_certificate_names_a_tenant_only_in_one_well_formed_uri(
    uris: tuple[str, ...], tenant: str | None, scopes: set[str]
) -> None:
    peer = read_peer(with_uris(*uris))
    assert (peer.tenant, set(peer.scopes), peer.serial) == (tenant, scopes, "01")


def test_a_certificate_of_an_unknown_version_is_refused() -> None:
    version = CLIENT.index(b"\xa0\x03\x02\x01\x02") + 4
    with pytest.raises(PeerUnreadable, match="InvalidVersion"):
        read_peer(CLIENT[:version] + b"\x07" + CLIENT[version + 1 :])


CLIENT = signed(Leaf.client("one", "acme", "read,submit")).public_bytes(Encoding.DER)


@given(st.data())
def test_a_certificate_with_any_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    der = bytearray(CLIENT)
    for place in data.draw(st.lists(st.integers(0, len(der) - 1), min_size=1, max_size=4)):
        der[place] = data.draw(st.integers(0, 255))
    try:
        read_peer(bytes(der))
    except PeerUnreadable as unreadable:
        assert "cannot be read" in str(unreadable)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_certificate_are_refused(der: bytes) -> None:
    with pytest.raises(PeerUnreadable):
        read_peer(der)


def test_a_servers_own_name_counts_only_where_no_other_is_given() -> None:
    leaf = Leaf.server("web", ("*.example.com", "bücher.example", "::1"))
    assert (leaf.kind, leaf.sans) == (LeafKind.SERVER, ("DNS:*.example.com", "DNS:xn--bcher-kva.example", "IP:::1"))
    assert Leaf.server("web.example").sans == ("DNS:web.example",)
    with pytest.raises(InputRefused, match="--san"):
        Leaf.server("my_server")
    assert checked_scopes("") == ()
