"""Addresses and URLs outside: which may be reached, a proxy's answers, and URLs in texts."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from yarl import URL

from producers.selection import is_at
from schemas.settings import SettingsRefused, read_settings
from telemetry.logs import origin_of
from workers.egress import (
    SPECIAL_IPV4,
    SPECIAL_IPV6,
    EgressPolicy,
    EgressRefused,
    EgressSettings,
    ProxyFailed,
    Refusal,
    check_reference,
    check_url,
    is_allowed,
    is_named,
    is_public_address,
)
from workers.egress.proxy import MAX_HEAD_BYTES, read_credentials, status_in
from workers.enrichment.cache.entry import CacheEntry, Key, target_of_host, target_of_url

# -- egress addresses ------------------------------------------------------------------------------------------------
VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "ssrf_vectors.json").read_text())
SPELLINGS: list[str] = json.loads((Path(__file__).parent / "data" / "url_spellings.json").read_text())["loopback"]
PRODUCTION = EgressPolicy()
ANY_PORT = EgressPolicy(development=True, ports=frozenset(range(1, 65536)))
DEVELOPMENT = EgressPolicy(development=True)


def refusal(url: str, policy: EgressPolicy) -> EgressRefused:
    with pytest.raises(EgressRefused) as refused:
        check_url(url, policy)
    return refused.value


def test_the_addresses_of_the_lists_are_public_or_not_as_they_say_and_no_registry_row_is_public() -> None:
    """Each list is judged as texts and as parsed addresses, and each registry row by both of its ends."""
    for listed, is_public in (("deny", False), ("allow", True)):
        judged = {
            address: (is_public_address(address), is_public_address(ip_address(address))) for address in VECTORS[listed]
        }
        assert judged == dict.fromkeys(VECTORS[listed], (is_public, is_public))
    ends = [end for cidr, _ in SPECIAL_IPV4 + SPECIAL_IPV6 for end in (ip_network(cidr)[0], ip_network(cidr)[-1])]
    assert [str(end) for end in ends if is_public_address(end)] == []


@pytest.mark.parametrize(
    "form", ["::ffff:{0}", "64:ff9b::{0}", "::{0}", "2a00:1450::5efe:{0}", "2a00:1450::200:5efe:{0}"]
)
def test_an_embedded_ipv4_address_is_judged_too(form: str) -> None:
    """Forms: mapped, NAT64, compatible, and ISATAP with both of its identifiers."""
    ends = [end for cidr, _ in SPECIAL_IPV4 for end in (IPv4Network(cidr)[0], IPv4Network(cidr)[-1])]
    assert [str(end) for end in ends if is_public_address(form.format(end))] == []
    if form in ("::ffff:{0}", "64:ff9b::{0}", "2a00:1450::5efe:{0}"):
        assert is_public_address(form.format("8.8.8.8"))


@given(st.integers(0, 2**128 - 1).map(IPv6Address))
def test_only_global_unicast_mapped_and_nat64_addresses_can_be_public(address: IPv6Address) -> None:
    homes = (IPv6Network("2000::/3"), IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
    assert not is_public_address(address) or any(address in home for home in homes)


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_an_address_that_python_calls_private_is_never_public(address: IPv4Address) -> None:
    assert not is_public_address(address) or address.is_global


def test_a_spelling_or_a_value_that_is_no_address_is_not_public() -> None:
    spellings: tuple[Any, ...] = (
        "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "8.8.2056", "134744072", "0x8080808", "010.8.8.8",
        "8.8.8.8.", " 8.8.8.8", "8.8.8.8\n", "8.8.8.8/32", "[2606:4700::1]", "2606:4700::1%eth0", "fe80::1%1",
        "٨.8.8.8", "example.com", "", 134744072, b"\x08\x08\x08\x08", None, 8.8,
    )  # fmt: skip
    assert [value for value in spellings if is_public_address(value)] == []


def test_azures_host_service_is_refused_although_its_address_is_public_space() -> None:
    assert not is_public_address("168.63.129.16")
    assert is_public_address("168.63.129.17")


def test_a_zone_is_refused_even_where_its_network_is_allowed() -> None:
    policy = EgressPolicy(allow=(ip_network("fe80::/10"),))
    assert is_allowed("fe80::1", policy)
    assert not is_allowed("fe80::1%eth0", policy)


def test_an_allowed_network_holds_for_mapped_spellings() -> None:
    policy = EgressPolicy(allow=(ip_network("10.0.0.0/8"),))
    assert is_allowed("::ffff:10.1.2.3", policy)
    assert not is_allowed("::ffff:11.0.0.1", PRODUCTION) or is_public_address("11.0.0.1")
    assert not is_allowed("::ffff:127.0.0.1", policy)


DENIED_URLS = [url for url in VECTORS["urls_deny"] if "nip.io" not in url]
"""URLs that the guard denies by their text. The names of nip.io are in tests/integration/test_hostile_names.py."""
OTHER_REASONS = {
    "http://0x7f000001/": Refusal.HOST,
    "http://2130706433/": Refusal.HOST,
    "http://0177.0.0.1/": Refusal.HOST,
    "http://127.1/": Refusal.HOST,
    "http://user:pass@127.0.0.1/": Refusal.USERINFO,
    "http://example.com:22/": Refusal.PORT,
}
"""Maps each URL that is refused for another reason than its address to the reason."""


@pytest.mark.parametrize("url", DENIED_URLS)
@pytest.mark.parametrize("policy", [PRODUCTION, DEVELOPMENT])
def test_a_url_of_the_deny_list_is_refused(url: str, policy: EgressPolicy) -> None:
    assert refusal(url, policy)


@pytest.mark.parametrize("url", [url for url in DENIED_URLS if url.startswith("http:")])
@pytest.mark.parametrize(("scheme", "policy"), [("http", DEVELOPMENT), ("https", DEVELOPMENT), ("https", PRODUCTION)])
def test_a_url_of_the_deny_list_is_refused_whatever_its_scheme(url: str, scheme: str, policy: EgressPolicy) -> None:
    assert refusal(url.replace("http", scheme, 1), policy).reason is OTHER_REASONS.get(url, Refusal.ADDRESS)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", Refusal.SCHEME),
        ("ftp://example.com/", Refusal.SCHEME),
        ("file:///etc/passwd", Refusal.SCHEME),
        ("//example.com/", Refusal.SCHEME),
        ("https://user@example.com/", Refusal.USERINFO),
        ("https://user:secret@example.com/", Refusal.USERINFO),
        ("https://:secret@example.com/", Refusal.USERINFO),
        ("https://example.com:22/", Refusal.PORT),
        ("https://8.8.8.8:6379/", Refusal.PORT),
        ("https://2130706433/", Refusal.HOST),
        ("https://0x7f.1/", Refusal.HOST),
        ("https://127.1/", Refusal.HOST),
        ("https://0177.0.0.1/", Refusal.HOST),
        ("https://127.0.0.1./", Refusal.HOST),
        ("https://1.2.3.4.5/", Refusal.HOST),
        ("https://[fe80::1%25eth0]/", Refusal.HOST),
        ("https://10.0.0.1/", Refusal.ADDRESS),
        ("https://[::1]/", Refusal.ADDRESS),
        ("https://localhost/", Refusal.ADDRESS),
        ("https://a.LOCALHOST./", Refusal.ADDRESS),
        ("https://", Refusal.URL),
        ("https://exa mple.com/", Refusal.URL),
        ("https://example.com:99999/", Refusal.URL),
        ("https://a..example.com/", Refusal.URL),
        (f"https://{'a' * 64}.example.com/", Refusal.URL),
        (f"https://example.{'a' * 64}", Refusal.URL),
    ],
)
def test_a_url_is_refused_with_its_reason(url: str, reason: Refusal) -> None:
    assert refusal(url, PRODUCTION).reason is reason


@pytest.mark.parametrize(
    "url",
    [
        *(spelling.replace("{port}", "8080") for spelling in SPELLINGS),
        *("https://１２７.0.0.1/", "https://127。0。0。1/"),  # noqa: RUF001 - full-width digits
        *("https://[cafe.cc:443]/", "https://[8.8.8.8:443]/", "https://[8.8.8.8]/"),  # no IPv6 address in brackets
        *(f"https://example.org:{port}/" for port in ("٣", "1_0", "+1")),  # no ASCII digits
    ],
)
def test_no_spelling_of_a_loopback_address_and_no_malformed_host_or_port_passes(url: str) -> None:
    assert refusal(url, ANY_PORT)


PIECES = st.sampled_from(
    ["http", "https", ":", "/", "//", "///", "@", "[", "]", "[]", "[::1]", "[v1.a]", "[fe80::1%25lo]", "::", ".",
     "..", "?", "#", "%", "%3B", "%zz", "%00", "\\", "a", "example.com", "xn--", "xn--a", "127.0.0.1", "0x", "1",
     "99999", "-1", " ", "\t", "\r\n", "\0", "é", "ß", "\u2100", "\uff0f", "\u200d", "\ud800", "\udc80", "\U0001f600",
     "a" * 300]
)  # fmt: skip
TEXTS = st.text() | st.lists(PIECES, max_size=8).map("".join) | st.lists(PIECES, max_size=8).map("https://".join)
POLICIES = st.sampled_from(
    [
        PRODUCTION,
        ANY_PORT,
        EgressPolicy(allow=(ip_network("0.0.0.0/0"), ip_network("::/0"))),
        EgressPolicy(names=frozenset({"a"})),
    ]
)


@example("https://a[]@/", ANY_PORT)
@given(TEXTS, POLICIES)
def test_any_text_passes_or_is_refused(text: str, policy: EgressPolicy) -> None:
    with suppress(EgressRefused):
        passed = check_url(text, policy)
        assert _is_a_target(passed.raw_path_qs)
        assert check_url(passed, policy) is passed


@example("https://a[]@/", ANY_PORT)
@example("//[", ANY_PORT)
@given(TEXTS, POLICIES)
def test_wherever_a_redirect_leads_it_passes_or_is_refused(reference: str, policy: EgressPolicy) -> None:
    for base in ("https://example.com", "https://example.com/a%2Fb/c;d?e=f", "https://[2606:4700::1]:8443/;?"):
        with suppress(EgressRefused):
            assert _is_a_target(check_reference(check_url(base, ANY_PORT), reference, policy).raw_path_qs)


def _is_a_target(text: str) -> bool:
    """True if the text is the path and query of a request line (RFC 9112, section 3.2.1)."""
    return re.fullmatch(r"/([A-Za-z0-9._~:/?@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*", text) is not None


@pytest.mark.parametrize(
    "url",
    ["https://example.com/hook?token=1", "https://example.com:8443/", "https://8.8.8.8/", "https://[2606:4700::1]/",
     f"https://{'a' * 63}.example.com/", "https://xn--bcher-kva.example/", "https://sub_domain.example.com/", "https://example.com./"],
)  # fmt: skip
def test_an_ordinary_url_passes_unchanged(url: str) -> None:
    assert str(check_url(url, PRODUCTION)) == url


def test_plain_http_needs_development_or_an_allowed_network() -> None:
    inside = EgressPolicy(allow=(ip_network("10.0.0.0/8"),))
    assert check_url("http://example.com/", DEVELOPMENT)
    assert check_url("http://10.0.0.1:9000/", inside)
    assert refusal("http://8.8.8.8/", inside)


def test_a_refusal_names_only_the_origin() -> None:
    refused = refusal("https://user:password@example.com:22/path/token?secret=1#fragment", PRODUCTION)
    assert str(refused) == f"https://example.com:22: {Refusal.USERINFO}"


@pytest.mark.parametrize(
    "url",
    [
        *(
            "https://example.com:443/x",
            "http://EXAMPLE.com:080",
            "https://[2606:4700:0::1111]:8443/",
            "http://1.1.1.1:80",
        ),
        *("https://bücher.example/", "https://faß.example", "https://☃.example", "http://example。com"),
    ],
)
def test_the_named_origin_is_the_one_that_is_connected_to(url: str) -> None:
    assert origin_of(url) == str(check_url(url, ANY_PORT).origin())


def test_the_two_allow_lists_are_read_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "10.0.0.0/8, Hooks.corp.example., fd00::/8, *.svc.cluster.local"
    monkeypatch.setenv("POSTBACK_EGRESS__ALLOW_CALLBACKS", listed)
    monkeypatch.setenv("POSTBACK_EGRESS__ALLOW_FETCH", "wiki")
    settings = EgressSettings()
    assert settings.callback_policy(development=False) == EgressPolicy(
        allow=(ip_network("10.0.0.0/8"), ip_network("fd00::/8")),
        names=frozenset({"hooks.corp.example", "*.svc.cluster.local"}),
    )
    assert settings.fetch_policy(development=True) == EgressPolicy(names=frozenset({"wiki"}), development=True)


def test_the_ports_are_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_EGRESS__PORTS", "443, 9443")
    policy = EgressSettings().callback_policy(development=False)
    assert check_url("https://example.com:9443/", policy)
    assert refusal("https://example.com:8443/", policy).reason is Refusal.PORT


BAD_NAMES = ("*", "*.", "*.10", "a b", "https://wiki", "wiki:80", "a..b", "*wiki", "-a")


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        *(("ALLOW_CALLBACKS", value, "allow_callbacks") for value in BAD_NAMES),
        *(("PORTS", value, "ports") for value in ("0", "65536", "https", "80-90")),
        ("ALLOW_FETCH", "10.0.0.0/8,*", "allow_fetch"),
        *(("DENY", value, "neither a network") for value in ("10.0.0.1/8", "10.0.0", "https://wiki", "*", "a b")),
    ],
)
def test_a_setting_with_an_invalid_part_is_refused(
    monkeypatch: pytest.MonkeyPatch, setting: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(f"POSTBACK_EGRESS__{setting}", value)
    with pytest.raises(ValueError, match=problem):
        EgressSettings()


PUPI = EgressPolicy(
    allow=(ip_network("8.8.0.0/16"), ip_network("2000::/3"), ip_network("10.0.0.0/8")),
    names=frozenset({"inside.example"}),
    deny=(ip_network("8.8.8.0/24"), ip_network("2606:4700::/32"), ip_network("10.9.0.0/16")),
    denied_names=frozenset({"inside.example", "*.corp.example"}),
    development=True,
)


@pytest.mark.parametrize(
    "host",
    ["8.8.8.8", "10.9.0.1", "[2606:4700::1]", "[::ffff:8.8.8.8]", "[64:ff9b::8.8.8.8]", "[2a00:1450::5efe:8.8.8.8]",
     "[2a00:1450::200:5efe:8.8.8.8]", "[2002:808:808::1]", "[2001:0:808:808::1]", "[2001:0:7f00:1::f7f7:f7f7]",
     "inside.example", "INSIDE.example.", "a.corp.example", "a.b.CORP.example."],
)  # fmt: skip
def test_a_denied_address_is_refused_although_it_is_public_or_allowed(host: str) -> None:
    """An IPv4 address is denied in every form that embeds it: mapped, NAT64, ISATAP, 6to4, Teredo."""
    assert refusal(f"https://{host}/", PUPI).reason is Refusal.DENIED


@pytest.mark.parametrize(
    "host", ["8.8.4.4", "10.8.0.1", "[2a00:1450::1]", "corp.example", "xcorp.example", "a.inside.example"]
)
def test_an_address_beside_a_denied_network_passes(host: str) -> None:
    assert check_url(f"https://{host}/", PUPI)


def test_networks_and_names_are_denied_in_one_list_for_callbacks_and_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_EGRESS__DENY", "34.118.224.0/20, 198.18.5.7,2600::/16, Lb.corp.example.,*.internal")
    settings = EgressSettings()
    for policy in (settings.callback_policy(development=False), settings.fetch_policy(development=False)):
        assert policy.deny == (ip_network("34.118.224.0/20"), ip_network("198.18.5.7/32"), ip_network("2600::/16"))
        assert policy.denied_names == {"lb.corp.example", "*.internal"}


NAMES = EgressPolicy(names=frozenset({"receiver", "*.svc.cluster.local"}))


@pytest.mark.parametrize(
    "host", ["receiver", "RECEIVER", "receiver.", "hooks.svc.cluster.local", "A.b.SVC.cluster.local."]
)
def test_a_listed_name_may_have_any_port_and_plain_http(host: str) -> None:
    assert is_named(host, NAMES)
    assert check_url(f"http://{host}:9000/", NAMES)


@pytest.mark.parametrize(
    "host",
    ["receiver.example.com", "areceiver", "svc.cluster.local", "xsvc.cluster.local", "svc.cluster.local.example"],
)
def test_a_name_that_only_looks_like_a_listed_one_is_not_let_through(host: str) -> None:
    assert not is_named(host, NAMES)
    assert refusal(f"http://{host}:9000/", NAMES)


def test_localhost_can_be_listed_and_an_address_cannot() -> None:
    assert check_url("http://localhost:9000/", EgressPolicy(names=frozenset({"localhost"})))
    assert not is_named("10.0.0.1", EgressPolicy(names=frozenset({"10.0.0.1", "*.0.0.1"})))


# -- proxy answers ---------------------------------------------------------------------------------------------------
STATUSES = st.integers(100, 999)
PHRASES = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
FIELDS = st.lists(st.tuples(st.from_regex(r"[A-Za-z-]{1,20}", fullmatch=True), PHRASES), max_size=5)


def head(status: int, phrase: str, fields: list[tuple[str, str]]) -> bytes:
    """The head of an answer with this status and these fields, by RFC 9112."""
    lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields), "", ""]
    return "\r\n".join(lines).encode()


@given(STATUSES, PHRASES, FIELDS, st.data())
def test_the_status_of_every_head_is_read_once_the_head_is_complete(
    status: int, phrase: str, fields: list[tuple[str, str]], data: st.DataObject
) -> None:
    whole = head(status, phrase, fields)
    assert status_in(whole) == status
    assert status_in(whole[: data.draw(st.integers(0, len(whole) - 2))]) is None


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda noise: b"HTTP/1.1 2" + noise + b"\r\n\r\n"))
def test_any_bytes_of_a_proxy_raise_only_the_proxy_s_own_errors(noise: bytes) -> None:
    try:
        status = status_in(noise)
    except ProxyFailed:
        return
    assert status is None or 100 <= status <= 999


@given(STATUSES, st.binary(min_size=1))
def test_bytes_after_the_head_of_an_open_tunnel_are_refused(status: int, more: bytes) -> None:
    whole = head(status, "", []) + more
    if 200 <= status <= 299:
        with pytest.raises(ProxyFailed):
            status_in(whole)
    else:
        assert status_in(whole) == status


def test_a_head_without_an_end_is_refused_beyond_the_limit() -> None:
    endless = b"HTTP/1.1 200 OK\r\nA: " + b"a" * MAX_HEAD_BYTES
    assert status_in(endless[:MAX_HEAD_BYTES]) is None
    with pytest.raises(ProxyFailed):
        status_in(endless)


@pytest.mark.parametrize(
    ("value", "place"),
    [("http://proxy.corp.example:3128", ("proxy.corp.example", 3128)), ("http://[fd00::7]:80/", ("fd00::7", 80))],
)
def test_a_proxy_is_set_by_its_address(value: str, place: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_EGRESS__PROXY", value)
    found = EgressSettings().fetch_proxy()
    assert found is not None
    assert (found.host, found.port) == place


@pytest.mark.parametrize(
    "value",
    ["proxy:3128", "https://proxy:3128", "http://proxy", "http://user:s3cret@proxy:3128", "http://proxy:0",
     "http://proxy:65536", "http://[fd00:::7]:80", "http://proxy:3128/path", "socks5://proxy:1080", "",
     "http://proxy..example:3128", f"http://{'a' * 64}:3128"],
)  # fmt: skip
def test_any_other_value_is_refused_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_EGRESS__PROXY", value)
    with pytest.raises(SettingsRefused, match=r"^POSTBACK_EGRESS__PROXY: ") as refused:
        read_settings(EgressSettings)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"user", b":password", b"user:pass\nsecond:line", b"\xff:\xfe", b"a:b" * 2000]
)
def test_a_file_without_one_line_of_credentials_is_refused_at_the_start(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_bytes(content)
    monkeypatch.setenv("POSTBACK_EGRESS__PROXY_CREDENTIALS", str(file))
    with pytest.raises(SettingsRefused, match="credentials of the operator's proxy"):
        read_settings(EgressSettings)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_password_may_end_with_a_space(end: str, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_bytes(f"fleet: a password {end}".encode())
    assert read_credentials(tmp_path / "credentials") == "fleet: a password "


# -- url texts -------------------------------------------------------------------------------------------------------
JOB_SCHEMA = json.loads(Path("schemas/published/job.json").read_text())
PATTERN = next(one["pattern"] for one in JOB_SCHEMA["properties"]["callback_url"]["anyOf"] if "pattern" in one)
_HEX = "0123456789abcdefABF:."
HOSTS = st.one_of(
    st.text(_HEX, min_size=1, max_size=24).map("[{}]".format),
    st.ip_addresses(v=6).map("[{}]".format),
    st.ip_addresses(v=6).map("[{}%25eth0]".format),
    st.ip_addresses(v=4).map(str),
    st.text("ab1.-_é日‎İß@$&'();,=~`^|{}*+!\uff05。­😀%", min_size=1, max_size=12),
    st.text(min_size=1, max_size=12),
    st.sampled_from(["a[]", "[", "]", "[]", "[v1.a]", "[v1.a:b]", "xn--", "xn--a", "a..b", "0x7f.1", "%31", "a%2eb"]),
)
PORTS = st.one_of(
    st.just(""), st.integers(-1, 99999).map(":{}".format), st.sampled_from([":", ":00443", ":٣", ":1_0", ":+1"])
)
RESTS = st.one_of(st.just(""), st.text("/?#%é;[]@:\\ az2F\x00\n", max_size=12), st.text(max_size=12))
BUILT = st.builds("{}://{}{}{}".format, st.sampled_from(["https", "http", "HTTPS", "ftp"]), HOSTS, PORTS, RESTS)
PUBLISHED: SearchStrategy[str] = st.from_regex(PATTERN, fullmatch=True)
URL_TEXTS = st.one_of(PUBLISHED, BUILT, st.text())
SPELLED_POLICIES = st.sampled_from(
    [
        EgressPolicy(),
        EgressPolicy(development=True, ports=frozenset(range(1, 65536))),
        EgressPolicy(allow=(ip_network("0.0.0.0/0"), ip_network("::/0")), names=frozenset({"a"})),
    ]
)


def passing(text: str, policy: EgressPolicy) -> URL | None:
    """The URL if the guard allows it, else None."""
    with suppress(EgressRefused):
        return check_url(text, policy)
    return None


@example("https://[2001:db8::1::2]/hook", EgressPolicy())
@example("https://[B9.eF..:73598]/", EgressPolicy())
@example("https://[beef.ac:8080]:443/x", EgressPolicy())
@example("HTTP://[::]:٣", EgressPolicy(allow=(ip_network("::/0"),)))
@given(URL_TEXTS, SPELLED_POLICIES)
def test_the_guard_passes_or_refuses_any_text_and_each_part_of_a_passed_url_can_be_read(
    text: str, policy: EgressPolicy
) -> None:
    url = passing(text, policy)
    if url is None:
        return
    assert url.raw_host
    assert url.host
    assert url.port is not None
    assert str(url) == str(check_url(str(url), policy))
    assert origin_of(str(url)) == origin_of(text)
    assert str(url.origin())
    with suppress(EgressRefused):
        check_reference(url, text, policy)


@given(URL_TEXTS, SPELLED_POLICIES)
def test_a_parsed_url_is_judged_like_a_text(text: str, policy: EgressPolicy) -> None:
    with suppress(ValueError, TypeError, LookupError):
        url = URL(text)
        with suppress(EgressRefused):
            check_url(url, policy)


@given(URL_TEXTS, SPELLED_POLICIES)
def test_a_client_makes_a_request_for_every_url_that_passed(text: str, policy: EgressPolicy) -> None:
    url = passing(text, policy)
    if url is None:
        return

    async def request() -> aiohttp.ClientRequest:
        return aiohttp.ClientRequest("POST", url, loop=asyncio.get_running_loop())

    made = asyncio.run(request())
    assert made.url.raw_host == url.raw_host
    assert f"{url.raw_path_qs} {url.host_port_subcomponent}".isascii()


@example("https://a[]@/")
@example("https://[2001:db8::1::2]/hook")
@given(URL_TEXTS)
def test_every_text_gives_an_origin_a_filter_and_a_name_in_the_cache(text: str) -> None:
    assert origin_of(text)
    assert is_at(text, text)
    assert not is_at(text, "https://another.example")
    assert target_of_url(text).startswith("u:")
    assert target_of_host(text).startswith("h:")
    assert Key.of(text, "public")
    assert len(list(CacheEntry(0.0, 0.0, 0.0, text, text).targets)) == 4
