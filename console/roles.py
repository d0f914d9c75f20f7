"""Options, logs and exit statuses that the long-running commands share."""

from __future__ import annotations

import signal
from collections.abc import Coroutine
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import typer

from console.errors import BAD_INPUT, needing, say, telling
from console.settings import fleet_settings

if TYPE_CHECKING:
    from schemas.settings import FleetSettings

HOST = typer.Option("--host", help="The address that metrics and health are served on.")
METRICS_PORT = typer.Option(
    "--metrics-port", min=0, max=65535, help="The port of metrics and health; 0 is any free one, which is printed."
)


def starting(service: str) -> FleetSettings:
    """Start logging as this service, and read the fleet's settings.

    Until the role handles SIGTERM itself, the signal ends the process at once: there is nothing to drain.
    """
    from telemetry import logs

    signal.signal(signal.SIGTERM, _nothing_to_drain)
    fleet = fleet_settings()
    with telling(logs.UnknownLevel, code=BAD_INPUT):
        logs.configure(service)
    return fleet


def _nothing_to_drain(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def announce(port: int) -> None:
    """Print the port of metrics and health."""
    say(f"metrics and health on port {port}")


def run(service: str, role: Coroutine[None, None, None]) -> None:
    """Run a role on uvloop. An error that an operator can mend ends the command with one line.

    Spans go to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names, if it is set.
    """
    with needing("worker"):
        import uvloop

    from schemas.settings import SettingsRefused
    from screening.refused import RulesRefused
    from telemetry.traces import exporting
    from workers.delivery.keyring import KeyringError
    from workers.engines.base import EngineError
    from workers.engines.models.mistakes import RegistryRefused
    from workers.enrichment.answering.profile import ProfileRefused
    from workers.enrichment.answering.template import TemplateRefused
    from workers.enrichment.choosing.embedder import RerankerRefused
    from workers.enrichment.search.base import SearchMisconfigured
    from workers.kafka.topics import PropertyRefused
    from workers.stage.errors import NothingCompletes
    from workers.stage.intake import GroupRefused
    from workers.stage.settle import IdentityShared
    from workers.stage.topic_ids import TopicMadeAnew
    from workers.system.errors import ProcessError

    of_the_process = (
        ProcessError,
        EngineError,
        KeyringError,
        IdentityShared,
        GroupRefused,
        NothingCompletes,
        TopicMadeAnew,
    )
    of_the_jobs = (ProfileRefused, RegistryRefused, RerankerRefused, RulesRefused, SearchMisconfigured, TemplateRefused)
    refused = (SettingsRefused, PropertyRefused)
    with exporting(service), telling(*of_the_process, *of_the_jobs), telling(*refused, code=BAD_INPUT):
        uvloop.run(role)
