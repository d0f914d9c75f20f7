"""The parts of a connection without a socket: a head's rules, a transfer's pace, and the places for connections."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.door.body import parse_json
from gateway.door.errors import ApiError
from gateway.door.head import RefusedHeadError, check_fields, read_target
from gateway.door.pace import Pace
from gateway.door.places import Places
from gateway.door.settings import GatewaySettings

NAMES = st.sampled_from([b"host", b"transfer-encoding", b"content-length", b"x"])
VALUES = st.sampled_from([b"", b"a", b"a:80", b"[::1]:8443", b"chunked", b"gzip", b"3"]) | st.binary(max_size=20)


@given(st.sampled_from(["0.9", "1.0", "1.1", "2.0"]), st.lists(st.tuples(NAMES, VALUES), max_size=5), st.booleans())
def test_an_accepted_head_has_one_host_and_at_most_the_coding_chunked(
    version: str, fields: list[tuple[bytes, bytes]], upgrades: bool
) -> None:
    try:
        check_fields(version, fields, upgrades=upgrades)
    except RefusedHeadError as refused:
        assert refused.error.status == 400
        return
    names = [name for name, _ in fields]
    assert names.count(b"host") == 1 or (version == "1.0" and b"host" not in names)
    assert [value.strip().lower() for name, value in fields if name == b"transfer-encoding"] in ([], [b"chunked"])
    assert not (upgrades and b"content-length" in names)


@given(st.sampled_from(["GET", "POST", "OPTIONS", "CONNECT"]), st.binary(min_size=1, max_size=60))
def test_any_target_is_read_or_refused(method: str, url: bytes) -> None:
    try:
        target = read_target(method, url)
    except RefusedHeadError:
        return
    assert target.path
    assert "\0" not in target.path


@given(st.lists(st.sampled_from(["/", "a", "%41", "%2F", "%00", "%", "?", "a=1", "#", "é", "%C3%A9"]), max_size=8))
def test_a_path_is_decoded_once_and_has_no_nul(parts: list[str]) -> None:
    url = "/" + "".join(parts)
    try:
        target = read_target("GET", url.encode())
    except RefusedHeadError:
        assert not url.isascii() or "%00" in url
        return
    assert target.path.startswith("/")
    assert "%00" not in url.partition("#")[0]


def test_a_transfer_at_the_least_rate_goes_on_and_a_slower_one_ends() -> None:
    pace = Pace(10, 100, now=0.0)
    assert not any(pace.slow(second, second * 100) for second in range(1, 100))
    assert [pace.slow(99 + second, 9900 + second * 10) for second in (1, 9, 10, 11, 12)].count(True) >= 1


def test_one_byte_now_and_then_is_too_slow_however_long_it_goes_on() -> None:
    pace = Pace(10, 1024, now=0.0)
    assert not pace.slow(9, 1)
    assert pace.slow(18, 2)


def test_time_in_which_the_peer_waits_for_us_does_not_count() -> None:
    pace = Pace(10, 1024, now=0.0)
    pace.restart(100, 0)
    assert not pace.slow(109, 0)
    assert pace.slow(111, 0)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["10.0.0.1", "10.0.0.2", "2001:db8::1", "::1"]))))
def test_places_are_never_more_than_the_limits(steps: list[tuple[bool, str]]) -> None:
    places, taken = Places(3, 2), list[str]()
    for takes, address in steps:
        if takes:
            refusal = places.take(address)
            if len(taken) == 3:
                assert refusal == "all_taken"
            elif taken.count(address) == 2:
                assert refusal == "client_has_too_many"
            else:
                assert refusal is None
                taken.append(address)
        elif address in taken:
            places.free(address)
            taken.remove(address)
        assert len(places) == len(taken)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_a_client_is_an_ipv4_address_or_an_ipv6_network(one: str, other: str, alike: bool) -> None:
    places = Places(9, 1)
    assert places.take(one) is None
    assert (places.take(other) is not None) == alike


@given(st.binary(max_size=40) | st.text(alphabet='[]{}":,0123456789truefalsn\\u ', max_size=40).map(str.encode))
def test_any_body_is_json_or_gets_400(body: bytes) -> None:
    try:
        parse_json(body)
    except ApiError as error:
        assert error.status == 400


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 300 + b"]" * 300, b"9" * 10_000, b"NaN"])
def test_json_that_would_exhaust_a_parser_gets_400(body: bytes) -> None:
    with pytest.raises(ApiError, match="not JSON") as refused:
        parse_json(body)
    assert refused.value.status == 400


def test_retry_after_is_at_most_a_minute() -> None:
    assert ApiError(429, "slow_down", "Later.", headers={"Retry-After": "3600"}).headers == {"retry-after": "60"}
    assert ApiError(429, "slow_down", "Later.", headers={"Retry-After": "3"}).headers == {"retry-after": "3"}


@pytest.mark.parametrize("url", ["https://api.example.com", "https://api.example.com/door", "http://127.0.0.1:8080"])
def test_a_public_url_is_a_url_without_a_query(url: str) -> None:
    assert GatewaySettings(public_url=url).public_url == url
    for wrong in (url + "?a=1", url + "#a", "api.example.com", "ftp://a"):
        with pytest.raises(ValueError, match="public_url"):
            GatewaySettings(public_url=wrong)
