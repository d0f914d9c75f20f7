"""Requests generated from the OpenAPI document, valid and invalid ones: none gets a 5xx, and errors have one shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error

from tests.fleet_here import FleetHere
from tests.integration.gateway.gateway_process import Gateway, running_gateway

REQUESTS = 150


@pytest.fixture(scope="module")
def documented(module_fleet_here: FleetHere) -> Iterator[Gateway]:
    """A gateway without a worker: requests that wait for an answer get 504 after a moment."""
    with running_gateway(module_fleet_here, POSTBACK_GATEWAY__AWAIT_SECONDS="0.1") as started:
        yield started


def test_no_documented_operation_gives_a_5xx(documented: Gateway) -> None:
    key = documented.key("acme", "admin")
    document = documented.get("/openapi.json").json()
    # Leave out the stream of events, which has no end.
    operations = schemathesis.openapi.from_dict(document).exclude(path="/v1/events")

    @given(operations.as_strategy())
    @settings(max_examples=REQUESTS, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        answer = case.call(base_url=documented.url, headers={"authorization": f"Bearer {key}"}, timeout=60)
        assert answer.headers["x-request-id"]
        if answer.status_code >= 400 and case.method != "HEAD":
            error = answer.json()["error"]
            assert error.keys() >= {"message", "type", "param", "code"}
            if (answer.status_code, error["code"]) == (504, "answer_timeout"):
                return
        case.validate_response(answer, checks=[not_a_server_error])

    ask()
    assert "request-failed" not in documented.role.said()
