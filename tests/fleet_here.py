"""The product's roles in the test's process: a thread, an event loop, metrics and log lines of its own for each role.

A role starts within a tenth of a second here, and as a process in one to three. The roles are the product's own
coroutines; only the signals, the exit of the process and the hooks for uncaught errors are left out. A start reads
`POSTBACK_` variables as a process does, so the environment is the role's until its parts are loaded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import typer
import uvloop

from cli.fleet.exporter import serve
from cli.fleet.gateway_store import store_url
from cli.main import app
from gateway.role import Options, run_gateway
from schemas.settings import FleetSettings, KafkaSettings, SettingsRefused, read_settings
from telemetry import logs
from tests.process_state import role_settings_kept
from tests.product import Fleet, Role, eventually
from workers.kafka.topics import PropertyRefused
from workers.roles.delivery import run_delivery
from workers.roles.process import Listen
from workers.roles.worker import run_worker

START_SECONDS = 180.0
END_SECONDS = 10.0
"""The time for a drain after the test. After this time the role's main task is cancelled."""

log = logs.get_logger()
_roles: WeakKeyDictionary[threading.Thread, RoleHere] = WeakKeyDictionary()
"""The role of each thread: a thread that a role's thread starts belongs to the same role."""


class RoleHere(Role):
    """A role on a thread of this process."""

    def __init__(self, service: str, arguments: tuple[str, ...], log_file: Path) -> None:
        self.log = log_file
        self._service = service
        self._options = _parsed(service, arguments)
        self._thread = threading.Thread(target=self._run, name=f"role-{service}", daemon=True)
        self._status: int | None = None
        self._loaded = False
        self._output = log_file.open("w", encoding="utf-8")
        self._handler = self._handler_of_lines()
        self._stop: Callable[[], object] = lambda: None
        self._cancel: Callable[[], object] = lambda: None
        _roles[self._thread] = self

    def start(self, environment: Mapping[str, str]) -> None:
        """Start the role, and return when its parts are loaded or it ended. Only one role starts at a time."""
        with _environment(environment):
            self._thread.start()
            eventually(self._has_started, START_SECONDS, lambda: f"{self._service} does not start: {self.said()}")

    def ended(self, seconds: float = 0) -> int | None:
        self._thread.join(seconds)
        return None if self._thread.is_alive() else self._status

    def stop(self) -> None:
        self._stop()

    def end(self) -> None:
        """Stop the role, and wait for its end and that of its threads."""
        self.stop()
        if self.ended(END_SECONDS) is None:
            self._cancel()
            assert self.ended(END_SECONDS) is not None, f"{self._service} does not end: {self.said()[-2000:]}"
        # A library's thread, which has no name of its own, may serve all roles. The threads of a stage that never ran
        # are idle until this process ends.
        named = [one for one, role in list(_roles.items()) if role is self and not one.name.startswith("Thread-")]
        own = named if self._loaded else []
        for thread in own:
            thread.join(END_SECONDS)
        assert [thread.name for thread in own if thread.is_alive()] == [], f"threads outlive their {self._service}"
        logging.getLogger().removeHandler(self._handler)
        self._output.close()

    # -- on the role's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Run the role to its end, and say of an error what the process would say."""
        try:
            fleet = read_settings(FleetSettings)
            if self._service == "exporter":
                self._run_exporter(fleet)
            else:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(self._run_on_loop(fleet))
            self._status = 0
        except (SettingsRefused, PropertyRefused) as refused:
            self._fail(str(refused), status=2)
        except (Exception, asyncio.CancelledError) as error:
            self._fail(str(error), status=1)

    def _run_exporter(self, fleet: FleetSettings) -> None:
        stop = threading.Event()
        self._stop = self._cancel = stop.set
        serve(fleet, self._options["host"], self._options["port"], _announce, stop)

    async def _run_on_loop(self, fleet: FleetSettings) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        task = asyncio.ensure_future(self._role(fleet, stop))
        self._stop = lambda: loop.is_closed() or loop.call_soon_threadsafe(stop.set)
        self._cancel = lambda: loop.is_closed() or loop.call_soon_threadsafe(task.cancel)
        await task

    def _role(self, fleet: FleetSettings, stop: asyncio.Event) -> Coroutine[None, None, None]:
        given = self._options
        listen = Listen(given["host"], given["metrics_port"])
        if self._service == "deliver":
            return run_delivery(fleet, listen, _announce, stop)
        if self._service == "gateway":
            return run_gateway(fleet, listen, _announce, _gateway_options(given), stop)
        extent = {name: given[name] for name in ("with_delivery", "shadow")}
        return run_worker(fleet, given["engine"], given["model"], listen, _announce, **extent, stop=stop)

    def _fail(self, problem: str, status: int) -> None:
        self._status = status
        log.error(problem, action="command-failed")

    # -- on the test's thread --------------------------------------------------------------------------------------

    def _has_started(self) -> bool:
        """True if the role has read its settings: it is loaded, waits for an engine's server, or has ended."""
        if not self._thread.is_alive() or '"engine-wait"' in self.said():
            return True
        if not self._announced():
            return False
        try:
            self._loaded = "has not started" not in self._get("/healthz")[1]
        except OSError:  # the role is ending
            return False
        return self._loaded

    def _handler_of_lines(self) -> logging.Handler:
        """Add a handler that writes the lines of this role's threads, as the role's process would write them."""
        root = logging.getLogger()
        others = root.handlers[:]
        logs.configure(self._service, stream=self._output)
        [handler] = root.handlers
        handler.addFilter(lambda record: _roles.get(threading.current_thread()) is self)
        root.handlers[:] = [*others, handler]
        logging.captureWarnings(False)
        return handler


@dataclass
class FleetHere(Fleet[RoleHere]):
    """A fleet whose roles run in this process."""

    def _started(self, role: str, arguments: tuple[str, ...], environment: dict[str, str], log: Path) -> RoleHere:
        started = RoleHere(role, arguments, log)
        self.roles.append(started)
        started.start(environment)
        return started

    def end(self) -> None:
        for role in self.roles:
            role.stop()
        for role in self.roles:
            role.end()
        self.callbacks.end()


@contextmanager
def running_here(kafka: KafkaSettings, folder: Path) -> Iterator[FleetHere]:
    """A fleet whose roles drain and end with the block. The settings of the interpreter are as before afterwards."""
    with role_settings_kept(), _threads_inherit_roles():
        started = FleetHere(kafka, folder)
        try:
            yield started
        finally:
            started.end()


@contextmanager
def _threads_inherit_roles() -> Iterator[None]:
    """Make each thread that starts during the block belong to the role of the thread that starts it."""
    start = threading.Thread.start

    def inherit(thread: threading.Thread) -> None:
        if (role := _roles.get(threading.current_thread())) is not None:
            _roles[thread] = role
        start(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", inherit)
        yield


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Give this process exactly these `POSTBACK_` variables, and these others besides its own.

    A variable sets a constant too here, so that a test can shorten times.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("schemas.settings.constants_of", lambda _: frozenset())
        for name in os.environ:
            if name.startswith("POSTBACK_") and name not in variables:
                patch.delenv(name)
        for name, value in variables.items():
            if os.environ.get(name) != value:
                patch.setenv(name, value)
        yield


def _parsed(service: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of the role's command by name, with their defaults."""
    group = typer.main.get_group(app)
    with group.make_context("postback", [service]) as context:
        _, command, _ = group.resolve_command(context, [service])
    assert command is not None
    return command.make_context(service, list(arguments)).params


def _gateway_options(given: Mapping[str, Any]) -> Options:
    return Options(
        host=given["host"],
        port=given["port"],
        store_url=store_url(given["store"]),
        tls_cert=given["tls_cert"],
        tls_key=given["tls_key"],
        client_ca=given["client_ca"],
        client_crl=given["client_crl"],
        roles=frozenset(given["roles"].split(",")),
        announce=lambda url: log.info(
            f"the API is at {url} under /v1, the console page under /console", action="api-served"
        ),
    )


def _announce(port: int) -> None:
    log.info(f"metrics and health on port {port}", action="health-served")
