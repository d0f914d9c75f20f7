"""Options, logs and exit statuses that the long-running commands share."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Coroutine
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, NoReturn

import typer

from cli.shared.errors import BAD_INPUT, fail, say, say_in_log
from cli.shared.settings import fleet_settings

if TYPE_CHECKING:
    from schemas.settings import FleetSettings

ROLES = frozenset({"worker", "deliver", "gateway", "exporter"})
"""The long-running commands. Each name is the `service.name` of its log lines."""

HOST = typer.Option("--host", help="The address to listen on, for metrics and health.")
METRICS_PORT = typer.Option(
    "--metrics-port", min=0, max=65535, help="The port for metrics and health; 0 takes a free port, which is printed."
)


def begin_logs(service: str) -> None:
    """Start logging as this service. On a pipe, messages and uncaught errors are log lines from here on.

    Ends the command if the log level is unknown.
    """
    from telemetry import logs

    refused = None
    try:
        logs.configure(service)
    except logs.UnknownLevel as error:
        logs.configure(service, level="INFO")
        refused = error
    if not sys.stderr.isatty():
        log = logs.get_logger()
        level_of = {"command-failed": log.error, "setting-unread": log.warning}
        say_in_log(lambda message, action: level_of.get(action or "", log.info)(message, action=action))
        log_uncaught()
    if refused is not None:
        raise fail(str(refused), BAD_INPUT)


def log_uncaught() -> None:
    """Log errors that no code handles as one line each; Python's own hooks would print several plain lines.

    Such an error ends the process or one of its threads, or Python ignores it.
    """
    from telemetry.logs import get_logger

    log = get_logger()

    def process_ends(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        log.critical("No code handles this error; the process ends.", action="process-crashed", exc_info=error)

    def thread_ends(failed: threading.ExceptHookArgs) -> None:
        if failed.exc_type is not SystemExit:
            error = failed.exc_value
            log.critical("No code handles this error; its thread ends.", action="thread-crashed", exc_info=error)

    def is_ignored(ignored: sys.UnraisableHookArgs) -> None:
        error = ignored.exc_value
        log.error("Python ignored an error in a callback or a finalizer.", action="error-ignored", exc_info=error)

    sys.excepthook, threading.excepthook, sys.unraisablehook = process_ends, thread_ends, is_ignored


def starting() -> FleetSettings:
    """Read the fleet's settings.

    Until the role handles SIGTERM itself, the signal ends the process at once, because there is nothing to drain.
    """
    signal.signal(signal.SIGTERM, _nothing_to_drain)
    return fleet_settings()


def _nothing_to_drain(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def announce(port: int) -> None:
    """Print the port of metrics and health."""
    say(f"metrics and health on port {port}", action="health-served")


def run(service: str, role: Coroutine[None, None, None]) -> None:
    """Run a role on uvloop.

    Spans go to the collector at OTEL_EXPORTER_OTLP_ENDPOINT, if that variable is set.
    """
    import uvloop

    from telemetry.traces import exporting

    with exporting(service):
        uvloop.run(role)
