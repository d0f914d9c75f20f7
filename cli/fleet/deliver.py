"""`postback deliver`: sends signed callbacks for results."""

from __future__ import annotations

from typing import Annotated

from cli.fleet.roles import HOST, METRICS_PORT, announce, run, starting


def deliver(host: Annotated[str, HOST] = "127.0.0.1", metrics_port: Annotated[int, METRICS_PORT] = 0) -> None:
    """Sign results and POST them to their callbacks until SIGTERM; then drain and exit with status 0.

    Settings: POSTBACK_KEYRING, POSTBACK_DELIVERY__…, POSTBACK_EGRESS__…, and POSTBACK_REPLICA.
    """
    fleet = starting()
    from workers.roles.delivery import run_delivery
    from workers.roles.process import Listen

    run("deliver", run_delivery(fleet, Listen(host, metrics_port), announce))
