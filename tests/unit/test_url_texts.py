"""Any text as a URL: every function that parses the text returns a value, or raises the function's own refusal."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

import aiohttp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from yarl import URL

from producers.selection import is_at
from telemetry.logs import origin_of
from workers.egress import EgressPolicy, EgressRefused, check_reference, check_url
from workers.enrichment.cache.entry import CacheEntry, Key, target_of_host, target_of_url

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
TEXTS = st.one_of(PUBLISHED, BUILT, st.text())
POLICIES = st.sampled_from(
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
@given(TEXTS, POLICIES)
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


@given(TEXTS, POLICIES)
def test_a_parsed_url_is_judged_like_a_text(text: str, policy: EgressPolicy) -> None:
    with suppress(ValueError, TypeError, LookupError):
        url = URL(text)
        with suppress(EgressRefused):
            check_url(url, policy)


@pytest.mark.parametrize("text", ["https://[cafe.cc:443]/", "https://[8.8.8.8:443]/", "https://[8.8.8.8]/"])
def test_brackets_around_anything_but_an_ipv6_address_are_refused(text: str) -> None:
    with pytest.raises(EgressRefused):
        check_url(text, EgressPolicy())


@given(TEXTS, POLICIES)
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
@given(TEXTS)
def test_every_text_gives_an_origin_a_filter_and_a_name_in_the_cache(text: str) -> None:
    assert origin_of(text)
    assert is_at(text, text)
    assert not is_at(text, "https://another.example")
    assert target_of_url(text).startswith("u:")
    assert target_of_host(text).startswith("h:")
    assert Key.of(text, "public")
    assert len(list(CacheEntry(0.0, 0.0, 0.0, text, text).targets)) == 4


@pytest.mark.parametrize("port", ["٣", "1_0", "+1"])
def test_a_port_of_anything_but_ascii_digits_is_refused(port: str) -> None:
    with pytest.raises(EgressRefused):
        check_url(f"https://example.org:{port}/", EgressPolicy(development=True, ports=frozenset(range(65536))))
