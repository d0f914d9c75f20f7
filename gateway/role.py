"""The gateway's process: door, relay, view and expansion."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from gateway.access.access import Access
from gateway.access.settings import AccessSettings
from gateway.batches.shelf import Shelf
from gateway.blobs.opening import open_blobs
from gateway.blobs.settings import FilesSettings
from gateway.door.app import create_app
from gateway.door.door import Door
from gateway.door.server import DoorServer
from gateway.door.settings import GatewaySettings
from gateway.store.store import Store
from gateway.view.waiting import Waiting
from schemas.settings import FleetSettings, read_settings
from workers.roles.process import CannotListen, Listen, Process, run
from workers.stage.stage import Stage


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `postback gateway`."""

    host: str
    port: int
    store_url: str
    tls_cert: Path | None
    tls_key: Path | None
    client_ca: Path | None
    roles: frozenset[str]
    announce: Callable[[str], None]
    """Called with the URL of the door once its port is bound."""


async def run_gateway(fleet: FleetSettings, listen: Listen, announce: Callable[[int], None], options: Options) -> None:
    """Serve until SIGTERM. Raises ProcessError, SettingsRefused, and the error that ended a part."""

    async def prepare(process: Process, stack: AsyncExitStack) -> list[Stage]:
        store = Store.open(options.store_url)
        stack.callback(store.close)
        access = Access.open(store, options.store_url, read_settings(AccessSettings), process.clock)
        files = read_settings(FilesSettings)
        shelf = Shelf(store, open_blobs(files, options.store_url), files, process.clock)
        waiting = Waiting(process.clock)
        door = Door(fleet, store, access, waiting, shelf, process.clock, process.metrics)
        bound = _bound(options.host, options.port)
        stack.callback(bound.close)
        tls = _tls(options)
        limits = read_settings(GatewaySettings)
        process.beside.append(DoorServer(create_app(door), bound, tls, limits, process.clock, process.metrics))
        url = f"{'https' if tls else 'http'}://{_url_host(options.host)}:{bound.getsockname()[1]}"
        process.duties.append(f"serves the API at {url}/v1")
        options.announce(url)
        return []

    await run(fleet, listen, announce, prepare)


def _tls(options: Options) -> ssl.SSLContext | None:
    if options.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(options.tls_cert, options.tls_key)
    if options.client_ca is not None:
        context.load_verify_locations(options.client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bound(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises CannotListen."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise CannotListen(
            f"the API cannot be served on port {port} of {host} ({error.strerror}); choose another --port or --host"
        ) from None
