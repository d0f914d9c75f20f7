"""A gateway process: its options, its answers with and without TLS, its metrics, and its end."""

from __future__ import annotations

import socket
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.role import Options, run_gateway
from schemas.settings import FleetSettings
from tests.ecs import log_lines
from tests.integration.certificates import Authority
from tests.integration.gateway.gateway_process import Gateway, running_gateway
from tests.postback_command import environment_of, postback_here
from tests.product import Product, eventually
from workers.roles.process import Listen
from workers.system.errors import ProcessError


def test_a_key_from_the_command_opens_the_door(shared_gateway: Gateway) -> None:
    assert shared_gateway.get("/v1/models").status_code == 401
    assert shared_gateway.get("/v1/models", shared_gateway.key()).status_code == 200


def test_requests_are_counted_by_the_templates_of_their_routes(shared_gateway: Gateway) -> None:
    shared_gateway.get("/v1/files/file-1", shared_gateway.key())
    shared_gateway.get("/nothing")
    metrics = shared_gateway.role.metrics()
    assert metrics["postback_http_requests_total{/v1/files/{file_id},404}"] == 1
    assert metrics["postback_http_requests_total{unmatched,404}"] == 1
    assert metrics["postback_http_request_seconds_count{/v1/files/{file_id}}"] == 1


def test_health_is_on_the_metrics_port_only(shared_gateway: Gateway) -> None:
    assert shared_gateway.role.alive()
    assert [shared_gateway.get(path).status_code for path in ("/healthz", "/readyz", "/metrics")] == [404] * 3


def test_forwarded_headers_of_a_proxy_are_not_trusted(shared_gateway: Gateway) -> None:
    forged = {"x-forwarded-proto": "https", "x-forwarded-for": "10.0.0.1", "x-request-id": "req_mine"}
    answer = shared_gateway.get("/v1/models", headers=forged)
    assert answer.headers["x-request-id"] != "req_mine"
    assert "server" not in answer.headers


def test_the_door_answers_over_tls_1_3_only(tls_gateway: Gateway, authority: Authority) -> None:
    assert tls_gateway.url.startswith("https://")
    assert tls_gateway.get("/v1/models", tls_gateway.key()).status_code == 200
    with pytest.raises((ssl.SSLError, ConnectionError)):
        certificate_of(tls_gateway, authority, ssl.TLSVersion.TLSv1_2)


def test_a_renewed_certificate_is_used_without_a_restart(tls_gateway: Gateway, authority: Authority) -> None:
    before = certificate_of(tls_gateway, authority)
    authority.chain_file()
    eventually(lambda: certificate_of(tls_gateway, authority) != before, 30, tls_gateway.role.said)


def certificate_of(gateway: Gateway, authority: Authority, most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> object:
    """The serial number of the certificate that the server shows to a client of at most this TLS version."""
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    context.maximum_version = most
    plain = socket.create_connection(("127.0.0.1", gateway.port), 30)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        shown = connection.getpeercert()
        assert shown is not None
        return shown["serialNumber"]


def test_sigterm_ends_the_process_with_status_0(product: Product) -> None:
    with running_gateway(product) as gateway:
        # This request leaves a connection open, which must not delay the gateway's end.
        assert gateway.get("/v1/models").status_code == 401
        assert gateway.role.terminate() == 0
        assert "Stopped." in gateway.role.said()


def test_behind_a_proxy_that_speaks_tls_the_door_serves_plain_http_at_any_address(product: Product) -> None:
    plain = {"POSTBACK_ENV": "production", "POSTBACK_GATEWAY__PLAIN_HTTP": "true"}
    with running_gateway(product, "--host", "0.0.0.0", **plain) as gateway:
        assert "http://0.0.0.0:" in gateway.role.said()
        assert gateway.get("/v1/models", gateway.key()).status_code == 200


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"env": "production"}, "Give --tls-cert and --tls-key"),
        ({"host": "0.0.0.0"}, "Give --tls-cert and --tls-key"),
        ({"tls_key": Path("door.key")}, "need --tls-cert"),
        ({"client_ca": Path("ca.pem")}, "need --tls-cert"),
        ({"client_crl": Path("crl.pem")}, "need --tls-cert"),
        ({"tls_cert": Path("door.pem"), "client_crl": Path("crl.pem")}, "--client-crl needs --client-ca"),
        ({"tls_cert": Path("missing.pem")}, r"missing\.pem cannot be used for TLS"),
        ({"store_url": "sqlite:////no/such/folder/a.db"}, "the store cannot be opened"),
        ({"host": "192.0.2.1"}, r"the API cannot be served on port 0 of 192\.0\.2\.1"),
    ],
)
async def test_a_gateway_that_cannot_serve_names_the_fix(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    fleet = FleetSettings(env=change.pop("env", "development"))
    options = Options(
        host="127.0.0.1",
        port=0,
        store_url=f"sqlite:///{tmp_path / 'store.db'}",
        tls_cert=None,
        tls_key=None,
        client_ca=None,
        client_crl=None,
        roles=frozenset({"door"}),
        announce=lambda url: pytest.fail(f"it serves at {url}"),
    )
    with pytest.raises(ProcessError, match=said):
        await run_gateway(fleet, Listen(), lambda _port: None, replace(options, **change))


@pytest.mark.parametrize("roles", ["door,rely", "", "door;relay"])
def test_an_unknown_role_is_refused_before_anything_starts(roles: str) -> None:
    done = postback_here("gateway", "--roles", roles, env=environment_of())
    assert done.returncode == 2
    [line] = log_lines(done.stderr)
    assert "choose from door, relay, view, expansion" in line["message"]
