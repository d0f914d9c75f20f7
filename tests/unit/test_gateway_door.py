"""The door without its routes: the limits of a connection, its certificates, and the description of the API."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from gateway.access import Scope
from gateway.door.api import API
from gateway.door.app import routes
from gateway.door.body import parse_json
from gateway.door.connection import Pace, RefusedHeadError, check_fields, read_target
from gateway.door.endpoint import Endpoint
from gateway.door.fleet import Announcements
from gateway.door.openapi import openapi_document
from gateway.door.server import DoorServer, Places
from gateway.door.settings import GatewaySettings
from gateway.errors import ApiError
from gateway.page.rendering import CONTENT_POLICY, address_of
from gateway.page.views import page_routes
from gateway.view.waiting import Waiting
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from tests.drawn import drawn
from tests.unit.door_rig import changed
from tests.unit.gateway_rig import Rig, gateway_rig

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


@given(
    st.sampled_from(["GET", "POST", "OPTIONS", "CONNECT"]),
    st.binary(min_size=1, max_size=60),
    st.lists(st.sampled_from(["/", "a", "%41", "%2F", "%00", "%", "?", "a=1", "#", "é", "%C3%A9"]), max_size=8),
)
def test_any_target_is_refused_or_decoded_once_without_nul(method: str, target: bytes, parts: list[str]) -> None:
    with suppress(RefusedHeadError):
        path, _, _ = read_target(method, target)
        assert path
        assert "\0" not in path
    url = "/" + "".join(parts)
    try:
        path, _, _ = read_target("GET", url.encode())
    except RefusedHeadError:
        assert not url.isascii() or "%00" in url
        return
    assert path.startswith("/")
    assert "%00" not in url.partition("#")[0]


def test_a_transfer_at_the_least_rate_goes_on_and_a_slower_one_ends() -> None:
    pace = Pace(10, 100, now=0.0)
    assert not any(pace.slow(second, second * 100) for second in range(1, 100))
    assert [pace.slow(99 + second, 9900 + second * 10) for second in (1, 9, 10, 11, 12)].count(True) >= 1
    now_and_then = Pace(10, 1024, now=0.0)
    assert [now_and_then.slow(9, 1), now_and_then.slow(18, 2)] == [False, True]
    waiting_for_us = Pace(10, 1024, now=0.0)
    waiting_for_us.restart(100, 0)
    assert [waiting_for_us.slow(109, 0), waiting_for_us.slow(111, 0)] == [False, True]


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


def test_a_client_is_an_ipv4_address_or_an_ipv6_network() -> None:
    for one, other, alike in (
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("10.0.0.1", "10.0.0.2", False),
    ):
        places = Places(9, 1)
        assert places.take(one) is None
        assert (places.take(other) is not None) == alike, other


@given(st.binary(max_size=40) | st.text(alphabet='[]{}":,0123456789truefalsn\\u ', max_size=40).map(str.encode))
def test_any_body_is_json_or_gets_400(body: bytes) -> None:
    try:
        parse_json(body)
    except ApiError as error:
        assert error.status == 400


def test_json_that_would_exhaust_a_parser_gets_400_and_retry_after_is_at_most_a_minute() -> None:
    for body in (b"[" * 100_000, b'{"a":' * 100_000, b"[" * 300 + b"]" * 300, b"9" * 10_000, b"NaN"):
        with pytest.raises(ApiError, match="not JSON") as refused:
            parse_json(body)
        assert refused.value.status == 400
    for said, sent in (("3600", "60"), ("3", "3")):
        assert ApiError(429, "slow_down", "Later.", headers={"Retry-After": said}).headers == {"retry-after": sent}


# -- the description of the API ----------------------------------------------------------------------------------------


IN_PATH = re.compile(r"\{([a-z_]+)(?::path)?\}")
ENDLESS = ("/v1/events",)
BY_OPERATION = settings(
    max_examples=drawn(2), suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], deadline=None
)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A door that asks no Kafka for models, and hardly waits for answers, because no worker runs."""
    with gateway_rig(tmp_path_factory.mktemp("door"), announced=Announcements) as made:
        limits = GatewaySettings(await_seconds=0.01, cancel_seconds=0)
        yield changed(made, settings=limits, waiting=Waiting(SystemClock()))


def served(rig: Rig) -> set[tuple[str, str]]:
    """The methods and paths of the API's routes."""
    return {
        (method, IN_PATH.sub(r"{\1}", route.path))
        for route in routes(rig.door)
        for method in (route.methods or ())
        if route.path.startswith("/v1/") and method not in ("HEAD", "OPTIONS")
    }


def test_every_route_is_described_and_no_other(rig: Rig) -> None:
    paths = openapi_document()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == served(rig)
    assert len({endpoint.name for endpoint in API}) == len(API)


def test_the_key_of_an_upload_and_the_body_that_a_rotation_may_leave_out_are_described() -> None:
    paths = openapi_document()["paths"]
    rotation = paths["/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret"]["post"]
    assert [each["name"] for each in paths["/v1/files"]["post"]["parameters"]] == ["Idempotency-Key"]
    assert not rotation["requestBody"]["required"]


def test_each_summary_names_its_own_operation() -> None:
    operations = [each for path in openapi_document()["paths"].values() for each in path.values()]
    summaries = [each["summary"] for each in operations]
    assert len(set(summaries)) == len(summaries)
    hooks = [each["summary"] for each in operations if "Webhook" in each["operationId"]]
    assert [said for said in hooks if "webhook" not in said or said.startswith("Answer")] == []


def test_every_reference_of_the_document_leads_to_a_schema() -> None:
    document = openapi_document()

    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            yield from (value for name, value in part.items() if name == "$ref")
            for inner in part.values():
                yield from references(inner)
        elif isinstance(part, list):
            for inner in part:
                yield from references(inner)

    for place in references(document):
        target = document
        for name in place.removeprefix("#/").split("/"):
            target = target[name]


async def test_an_operation_needs_the_scope_that_is_described(rig: Rig) -> None:
    wrong = []
    for endpoint in API:
        path = IN_PATH.sub("unknown", endpoint.path)
        others = [scope for scope in Scope if scope not in (endpoint.scope, Scope.ADMIN)]
        answers = [await rig.request(endpoint.method, path, key) for key in (None, rig.key("acme", *others))]
        if [answer.status_code for answer in answers] != [401, 403]:
            wrong.append(endpoint.name)
    assert wrong == []


async def test_the_page_shows_every_operation_and_loads_nothing_but_its_style_sheet(rig: Rig) -> None:
    answer = await changed(rig, page_routes).request("GET", "/docs")
    document = (await rig.request("GET", "/openapi.json")).json()

    assert answer.headers["content-type"].startswith("text/html")
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in answer.text
    assert not re.search(r"<script|<img|src=|@import|url\(", answer.text)
    assert all(not urlsplit(link).netloc for link in re.findall(r'href="([^"]*)"', answer.text))
    assert re.findall(r'<link rel="(\w+)" href="([^"]*)"', answer.text) == [("stylesheet", address_of("docs.css"))]
    assert answer.headers["content-security-policy"] == CONTENT_POLICY


@pytest.fixture(scope="module")
def described() -> Any:
    """The document as schemathesis reads it, once; imported here since the import takes a second."""
    import schemathesis

    return schemathesis.openapi.from_dict(openapi_document())


@pytest.mark.parametrize("endpoint", [one for one in API if one.path not in ENDLESS], ids=lambda one: one.name)
def test_any_request_by_the_description_has_an_answer_below_500(rig: Rig, described: Any, endpoint: Endpoint) -> None:
    key = rig.key("schemathesis", *Scope)

    @BY_OPERATION
    @given(st.data())
    def send(data: st.DataObject) -> None:
        case = data.draw(described[endpoint.template][endpoint.method].as_strategy())
        arguments = case.as_transport_kwargs(base_url="http://door")
        method, url = arguments.pop("method"), urlsplit(arguments.pop("url"))
        chosen = {
            name: arguments[name] for name in ("json", "data", "files", "params", "headers") if arguments.get(name)
        }
        answer = asyncio.run(rig.request(method, url.path, key, **chosen))
        assert answer.status_code < 500 or answer.json()["error"]["code"] == "answer_timeout", answer.text

    send()


# -- the door's certificates -------------------------------------------------------------------------------------------


async def test_a_look_at_the_certificates_that_fails_is_logged_once_a_minute_and_the_door_looks_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The task that looks at the certificates also ends slow connections, so a failed look must not end the task."""
    looked = asyncio.Event()
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            looked.set()
        raise ValueError("a certificate of the year 10000")

    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = DoorServer(Starlette(), bound, None, GatewaySettings(), SystemClock(), Metrics(), look)
        watch = asyncio.create_task(server._watch(0.001))
        async with asyncio.timeout(60):
            await asyncio.wait({watch, asyncio.create_task(looked.wait())}, return_when=asyncio.FIRST_COMPLETED)
        assert not watch.done()
        watch.cancel()
    assert caplog.text.count("certificates-reload-failed") == 1
