"""The guard's verdict on addresses and URLs by their text alone."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from telemetry.logs import origin_of
from workers.egress import (
    SPECIAL_IPV4,
    SPECIAL_IPV6,
    EgressPolicy,
    EgressRefused,
    EgressSettings,
    Refusal,
    check_reference,
    check_url,
    is_allowed,
    is_named,
    is_public_address,
)

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "ssrf_vectors.json").read_text())
SPELLINGS: list[str] = json.loads((Path(__file__).parent / "data" / "url_spellings.json").read_text())["loopback"]
PRODUCTION = EgressPolicy()
ANY_PORT = EgressPolicy(development=True, ports=frozenset(range(1, 65536)))
DEVELOPMENT = EgressPolicy(development=True)


@pytest.mark.parametrize("address", VECTORS["deny"])
def test_an_address_of_the_deny_list_is_not_public(address: str) -> None:
    assert not is_public_address(address)
    assert not is_public_address(ip_address(address))


@pytest.mark.parametrize("address", VECTORS["allow"])
def test_an_address_of_the_allow_list_is_public(address: str) -> None:
    assert is_public_address(address)
    assert is_public_address(ip_address(address))


@pytest.mark.parametrize("cidr", [cidr for cidr, _ in SPECIAL_IPV4 + SPECIAL_IPV6])
def test_both_ends_of_every_registry_row_are_refused(cidr: str) -> None:
    network = ip_network(cidr)
    assert not is_public_address(network[0])
    assert not is_public_address(network[-1])


@pytest.mark.parametrize("cidr", [cidr for cidr, _ in SPECIAL_IPV4])
@pytest.mark.parametrize(
    "form", ["::ffff:{0}", "64:ff9b::{0}", "::{0}", "2a00:1450::5efe:{0}", "2a00:1450::200:5efe:{0}"]
)
def test_an_embedded_ipv4_address_is_judged_too(cidr: str, form: str) -> None:
    """Forms: mapped, NAT64, compatible, and ISATAP with both of its identifiers."""
    for address in (IPv4Network(cidr)[0], IPv4Network(cidr)[-1]):
        assert not is_public_address(form.format(address))


@pytest.mark.parametrize("form", ["::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2a00:1450::5efe:8.8.8.8"])
def test_a_public_ipv4_address_stays_public_inside_ipv6(form: str) -> None:
    assert is_public_address(form)


@given(st.integers(0, 2**128 - 1).map(IPv6Address))
def test_only_global_unicast_mapped_and_nat64_addresses_can_be_public(address: IPv6Address) -> None:
    homes = (IPv6Network("2000::/3"), IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
    assert not is_public_address(address) or any(address in home for home in homes)


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_an_address_that_python_calls_private_is_never_public(address: IPv4Address) -> None:
    assert not is_public_address(address) or address.is_global


@pytest.mark.parametrize(
    "spelling",
    ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "8.8.2056", "134744072", "0x8080808", "010.8.8.8",
     "8.8.8.8.", " 8.8.8.8", "8.8.8.8\n", "8.8.8.8/32", "[2606:4700::1]", "2606:4700::1%eth0", "fe80::1%1", "٨.8.8.8",
     "example.com", ""],
)  # fmt: skip
def test_a_spelling_that_is_no_address_is_not_public(spelling: str) -> None:
    assert not is_public_address(spelling)


@pytest.mark.parametrize("value", [134744072, b"\x08\x08\x08\x08", None, 8.8])
def test_a_value_that_is_no_address_is_not_public(value: Any) -> None:
    assert not is_public_address(value)


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
"""URLs that the guard denies by their text. The names of nip.io are in tests/integration/test_rebinding.py."""
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
    with pytest.raises(EgressRefused):
        check_url(url, policy)


@pytest.mark.parametrize("url", [url for url in DENIED_URLS if url.startswith("http:")])
@pytest.mark.parametrize(("scheme", "policy"), [("http", DEVELOPMENT), ("https", DEVELOPMENT), ("https", PRODUCTION)])
def test_a_url_of_the_deny_list_is_refused_whatever_its_scheme(url: str, scheme: str, policy: EgressPolicy) -> None:
    with pytest.raises(EgressRefused) as refused:
        check_url(url.replace("http", scheme, 1), policy)
    assert refused.value.reason is OTHER_REASONS.get(url, Refusal.ADDRESS)


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
    with pytest.raises(EgressRefused) as refused:
        check_url(url, PRODUCTION)
    assert refused.value.reason is reason


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_loopback_address_passes(spelling: str) -> None:
    with pytest.raises(EgressRefused):
        check_url(spelling.replace("{port}", "8080"), ANY_PORT)


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


def test_fullwidth_digits_do_not_hide_an_address() -> None:
    with pytest.raises(EgressRefused):
        check_url("https://１２７.0.0.1/", PRODUCTION)  # noqa: RUF001 - the point of the test
    with pytest.raises(EgressRefused):
        check_url("https://127。0。0。1/", PRODUCTION)


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
    with pytest.raises(EgressRefused):
        check_url("http://8.8.8.8/", inside)


def test_a_refusal_names_only_the_origin() -> None:
    with pytest.raises(EgressRefused) as refused:
        check_url("https://user:password@example.com:22/path/token?secret=1#fragment", PRODUCTION)
    assert str(refused.value) == f"https://example.com:22: {Refusal.USERINFO}"


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
    monkeypatch.setenv("POSTBACK_EGRESS__ALLOW_CALLBACKS", "10.0.0.0/8, fd00::/8")
    monkeypatch.setenv("POSTBACK_EGRESS__ALLOW_CALLBACK_NAMES", "Hooks.corp.example., *.svc.cluster.local")
    monkeypatch.setenv("POSTBACK_EGRESS__ALLOW_FETCH_NAMES", "wiki")
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
    with pytest.raises(EgressRefused) as refused:
        check_url("https://example.com:8443/", policy)
    assert refused.value.reason is Refusal.PORT


@pytest.mark.parametrize(
    "value", ["10.0.0.1", "*", "*.", "*.10", "a b", "https://wiki", "wiki:80", "a..b", "*wiki", "-a"]
)
def test_an_invalid_name_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("POSTBACK_EGRESS__ALLOW_CALLBACK_NAMES", value)
    with pytest.raises(ValueError, match="allow_callback_names"):
        EgressSettings()


@pytest.mark.parametrize("value", ["0", "65536", "https", "80-90"])
def test_an_invalid_port_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("POSTBACK_EGRESS__PORTS", value)
    with pytest.raises(ValueError, match="ports"):
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
    with pytest.raises(EgressRefused) as refused:
        check_url(f"https://{host}/", PUPI)
    assert refused.value.reason is Refusal.DENIED


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


@pytest.mark.parametrize("value", ["10.0.0.1/8", "10.0.0", "https://wiki", "*", "a b"])
def test_a_text_that_is_neither_network_nor_name_cannot_be_denied(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("POSTBACK_EGRESS__DENY", value)
    with pytest.raises(ValueError, match="neither a network"):
        EgressSettings()


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
    with pytest.raises(EgressRefused):
        check_url(f"http://{host}:9000/", NAMES)


def test_localhost_can_be_listed_and_an_address_cannot() -> None:
    assert check_url("http://localhost:9000/", EgressPolicy(names=frozenset({"localhost"})))
    assert not is_named("10.0.0.1", EgressPolicy(names=frozenset({"10.0.0.1", "*.0.0.1"})))


def test_an_allow_list_with_an_error_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTBACK_EGRESS__ALLOW_FETCH", "10.0.0.0/8,everything")
    with pytest.raises(ValueError, match="allow_fetch"):
        EgressSettings()
