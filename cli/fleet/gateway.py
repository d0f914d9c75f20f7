"""`postback gateway`: the HTTP front door."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.fleet.roles import METRICS_PORT, announce, run, starting
from cli.shared.errors import BAD_INPUT, fail, say


def gateway(
    host: Annotated[str, typer.Option("--host", help="The address to listen on, for the API and the metrics.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The API's port; 0 takes a free port.")] = 8443,
    store: Annotated[str | None, typer.Option("--store", help="The database's URL; SQLite by default.")] = None,
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", help="A PEM file with the certificate and its chain.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="A PEM file with the certificate's key.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option("--client-ca", help="A PEM file with the CA of client certificates.")
    ] = None,
    client_crl: Annotated[
        Path | None,
        typer.Option(
            "--client-crl", help="A PEM file with the CA's revocation list; by default crl.pem beside the CA's file."
        ),
    ] = None,
    roles: Annotated[
        str, typer.Option("--roles", help="The parts that run in this process, separated by commas.")
    ] = "door,relay,view,expansion",
    metrics_port: Annotated[int, METRICS_PORT] = 0,
) -> None:
    """Serve the HTTP API until SIGTERM; then answer the running requests and exit with status 0.

    Settings: POSTBACK_GATEWAY__…, POSTBACK_STORE__…, POSTBACK_KEYRING.
    """
    from cli.fleet.gateway_store import store_url
    from gateway.role import ROLES, Options, run_gateway
    from workers.roles.process import Listen

    chosen = frozenset(name.strip() for name in roles.split(","))
    if unknown := chosen - set(ROLES):
        named = ", ".join(map(repr, sorted(unknown)))
        raise fail(f"--roles: no role is named {named}; choose from {', '.join(ROLES)}", BAD_INPUT)
    fleet = starting()
    options = Options(
        host=host,
        port=port,
        store_url=store_url(store),
        tls_cert=tls_cert,
        tls_key=tls_key,
        client_ca=client_ca,
        client_crl=client_crl,
        roles=chosen,
        announce=_announce_api,
    )
    run("gateway", run_gateway(fleet, Listen(host, metrics_port), announce, options))


def _announce_api(url: str) -> None:
    """Print the gateway's address. The paths stand apart from the URL, since logs keep only a URL's origin."""
    say(f"the API is at {url} under /v1, the console page under /console", action="api-served")
