"""A gateway process: it starts, answers with and without TLS, and ends."""

from __future__ import annotations

from tests.integration.gateway.gateway_process import Gateway


def test_a_key_from_the_command_opens_the_door(shared_gateway: Gateway) -> None:
    assert shared_gateway.get("/v1/models").status_code == 401
    assert shared_gateway.get("/v1/models", shared_gateway.key()).status_code == 200


def test_the_door_answers_over_tls(tls_gateway: Gateway) -> None:
    assert tls_gateway.url.startswith("https://")
    assert tls_gateway.get("/v1/models", tls_gateway.key()).status_code == 200
