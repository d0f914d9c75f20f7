"""What the long-running commands have in common: their options, their logs, and how they end."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING

import typer

from console.errors import needing, say, telling
from console.settings import fleet_settings

if TYPE_CHECKING:
    from schemas.settings import FleetSettings

HOST = typer.Option("--host", help="The address that metrics and health are served on.")
METRICS_PORT = typer.Option("--metrics-port", min=0, max=65535, help="0 is any free one, which is printed.")


def starting(service: str) -> FleetSettings:
    """Begin to log as this service, and read the fleet's settings."""
    from telemetry import logs

    fleet = fleet_settings()
    logs.configure(service)
    return fleet


def announce(port: int) -> None:
    """Tell whoever started the process where its metrics are."""
    say(f"metrics and health on port {port}")


def run(role: Coroutine[None, None, None]) -> None:
    """Run a role on uvloop; what an operator can mend ends it with one line."""
    with needing("worker"):
        import uvloop

    from workers.delivery.keyring import KeyringError
    from workers.enrichment import ProfileRefused, RerankerRefused, TemplateRefused
    from workers.enrichment.search.providers import SearchMisconfigured
    from workers.process import ProcessError
    from workers.stage.settle import IdentityShared

    refusals = (ProfileRefused, RerankerRefused, SearchMisconfigured, TemplateRefused)
    with telling(ProcessError, KeyringError, IdentityShared, *refusals):
        uvloop.run(role)
