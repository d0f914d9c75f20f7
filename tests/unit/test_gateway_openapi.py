"""The description of the API: complete, true, readable as a page; and any request that follows it gets no 5xx."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Route

from gateway.access import Scope
from gateway.door.app import ROUTES, create_app
from gateway.door.openapi.document import OPERATIONS, openapi_document
from gateway.door.settings import GatewaySettings
from gateway.view.waiting import Waiting
from telemetry.clock import SystemClock
from tests.drawn import drawn
from tests.unit.gateway_rig import Rig, gateway_rig

IN_PATH = re.compile(r"\{([a-z_]+)(?::path)?\}")
ENDLESS = ("/v1/events",)
BY_OPERATION = settings(
    max_examples=drawn(2), suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], deadline=None
)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A door that asks no Kafka for models, and hardly waits for answers, because no worker runs."""
    with gateway_rig(tmp_path_factory.mktemp("door")) as made, pytest.MonkeyPatch.context() as patched:
        patched.setattr("gateway.door.routes.models.announced_models", lambda *_: None)
        limits = GatewaySettings(await_seconds=0.01, cancel_seconds=0)
        door = dataclasses.replace(made.door, settings=limits, waiting=Waiting(SystemClock()))
        yield dataclasses.replace(made, door=door, app=create_app(door))


def served(rig: Rig) -> set[tuple[str, str]]:
    """The methods and paths of the API's routes."""
    found = [route for make in ROUTES for route in make(rig.door) if isinstance(route, Route)]
    return {
        (method, IN_PATH.sub(r"{\1}", route.path))
        for route in found
        for method in (route.methods or ())
        if route.path.startswith("/v1/") and method not in ("HEAD", "OPTIONS")
    }


def test_every_route_is_described_and_no_other(rig: Rig) -> None:
    assert {(operation.method, operation.path) for operation in OPERATIONS} == served(rig)
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


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


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_an_operation_needs_the_scope_that_is_described(rig: Rig, operation: Any) -> None:
    path = IN_PATH.sub("unknown", operation.path)
    others = [scope for scope in Scope if scope not in (operation.scope, Scope.ADMIN)]
    assert (await rig.request(operation.method, path)).status_code == 401
    assert (await rig.request(operation.method, path, rig.key("acme", *others))).status_code == 403


async def test_the_page_shows_every_operation_and_loads_nothing(rig: Rig) -> None:
    answer = await rig.request("GET", "/docs")
    document = (await rig.request("GET", "/openapi.json")).json()

    assert answer.headers["content-type"].startswith("text/html")
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in answer.text
    assert not re.search(r"<script|<link|<img|src=|@import|url\(", answer.text)
    assert all(not urlsplit(link).netloc for link in re.findall(r'href="([^"]*)"', answer.text))
    assert "default-src 'none'; style-src 'sha256-" in answer.headers["content-security-policy"]


@pytest.fixture(scope="module")
def described() -> Any:
    """The document as schemathesis reads it, once; imported here since the import takes a second."""
    import schemathesis

    return schemathesis.openapi.from_dict(openapi_document())


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.path not in ENDLESS], ids=lambda one: one.name)
def test_any_request_by_the_description_has_an_answer_below_500(rig: Rig, described: Any, operation: Any) -> None:
    key = rig.key("schemathesis", *Scope)

    @BY_OPERATION
    @given(st.data())
    def send(data: st.DataObject) -> None:
        case = data.draw(described[operation.path][operation.method].as_strategy())
        arguments = case.as_transport_kwargs(base_url="http://door")
        method, url = arguments.pop("method"), urlsplit(arguments.pop("url"))
        chosen = {
            name: arguments[name] for name in ("json", "data", "files", "params", "headers") if arguments.get(name)
        }
        answer = asyncio.run(rig.request(method, url.path, key, **chosen))
        assert answer.status_code < 500 or answer.json()["error"]["code"] == "answer_timeout", answer.text

    send()
