"""`postback exporter`: the fleet's backlog and state as metrics, and as JSON for autoscalers."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING, Annotated

import typer

from cli.fleet.roles import HOST, announce, starting
from cli.shared.errors import BAD_INPUT, fail, quiet_clients
from cli.shared.settings import checked_settings
from workers.stage.progress import done_offsets

if TYPE_CHECKING:
    from schemas.settings import FleetSettings


def exporter(
    host: Annotated[str, HOST] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", "--metrics-port", min=0, max=65535, help="The port to listen on; 0 takes a free port."),
    ] = 0,
) -> None:
    """Serve the fleet's figures at /metrics and /backlog until SIGTERM, also while no worker runs.

    The process reads Kafka and writes nothing. While Kafka cannot be read, /backlog and /readyz answer 503.
    Settings: POSTBACK_EXPORTER__….
    """
    fleet, stop = starting(), Event()
    quiet_clients()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    serve(fleet, host, port, announce, stop)


def serve(fleet: FleetSettings, host: str, port: int, announce: Callable[[int], None], stop: Event) -> None:
    """Serve until `stop` is set. Calls `announce` with the port. A port that is taken ends the command."""
    from cli.operations.exporter.exporter import Exporter
    from cli.operations.exporter.reading import connected
    from cli.operations.exporter.replicas import ExporterSettings
    from telemetry.clock import SystemClock
    from telemetry.health import HealthServer
    from telemetry.logs import get_logger
    from telemetry.metrics import Metrics

    settings, metrics = checked_settings(ExporterSettings), Metrics()
    connect = partial(connected, fleet.kafka, done_offsets)
    role = Exporter(fleet.kafka.topics, connect, settings, metrics, SystemClock())
    try:
        server = HealthServer(metrics, role.readiness, host, port, alive=role.alive, pages={"/backlog": role.backlog})
    except OSError as error:
        raise fail(
            f"--port: port {port} of {host} cannot be used ({error.strerror}); choose another", BAD_INPUT
        ) from None
    with server:
        announce(server.port)
        # A reading may wait for a silent broker for a minute. A reading changes nothing, so the process ends without
        # waiting for the reading.
        Thread(target=role.run, args=(stop,), name="exporter", daemon=True).start()
        stop.wait()
    get_logger().info("Stopped.", action="stopped")
