"""The gateway's process: door, relay, view and expansion."""

from __future__ import annotations

import asyncio
import math
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, select

from gateway.accept.acceptance import Acceptance
from gateway.accept.relay import Relay
from gateway.access.access import Access
from gateway.access.quotas import release
from gateway.access.settings import AccessSettings
from gateway.access.tenant_settings import TenantSettings
from gateway.access.tenants import find_tenant
from gateway.batches.clerk import Clerk
from gateway.batches.expansion import ExpansionHandler
from gateway.batches.files import RANGES_AT_ONCE, Shelf
from gateway.batches.orders import BatchRow
from gateway.blobs.base import BlobsAway, has_answer
from gateway.blobs.folder import folder_of, open_blobs
from gateway.blobs.settings import FilesSettings
from gateway.door.app import create_app
from gateway.door.door import Door, nothing
from gateway.door.fleet import FleetModels, read_announcements
from gateway.door.server import DoorServer
from gateway.door.settings import GatewaySettings
from gateway.page.rendering import CONSOLE
from gateway.page.views import page_routes
from gateway.store.dialects import sqlite_file
from gateway.store.settings import StoreSettings
from gateway.store.store import Store, StoreAway
from gateway.tls import DoorTls, TlsFiles
from gateway.view.retention import Retention
from gateway.view.view import TopicView
from gateway.view.waiting import Waiting
from gateway.view.writing import OnResults
from gateway.webhooks.fan_out import Sending, batch_ended, fanning_out
from schemas.groups import EXPANSION_GROUP
from schemas.settings import FleetSettings, read_settings
from telemetry.audit import Audit
from telemetry.clock import Clock
from telemetry.metrics import Metrics
from telemetry.peers import PeerWatch
from workers.delivery.keyring import Keyring
from workers.delivery.post import Poster
from workers.delivery.settings import DeliverySettings
from workers.egress import EgressPolicy, EgressSettings
from workers.kafka.topics import PartitionCounts
from workers.roles import last_resort
from workers.roles.input_filter import open_screen
from workers.roles.process import CannotListen, Listen, Process, run
from workers.stage.build import group_stage
from workers.stage.settings import StageSettings
from workers.stage.stage import Stage
from workers.stage.window import Limits
from workers.system.deltas import DeltaListeners, DeltaSettings
from workers.system.errors import ProcessError

if TYPE_CHECKING:
    from workers.screening.screen import Screen

ROLES = ("door", "relay", "view", "expansion")
"""The parts of a gateway: HTTP; outbox to Kafka; topics to rows; batches to jobs."""


class Unusable(ProcessError):  # noqa: N818 - it names what is wrong
    """The store, the storage of files or the audit's file cannot be used."""


class TlsMissing(ProcessError):  # noqa: N818 - it names what is missing
    """Give --tls-cert and --tls-key, or POSTBACK_GATEWAY__PLAIN_HTTP=true behind a proxy that speaks TLS."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `postback gateway`."""

    host: str
    port: int
    store_url: str
    tls_cert: Path | None
    tls_key: Path | None
    client_ca: Path | None
    client_crl: Path | None
    roles: frozenset[str]
    announce: Callable[[str], None]
    """This function is called with the door's URL when the door's port is bound."""


async def run_gateway(
    fleet: FleetSettings,
    listen: Listen,
    announce: Callable[[int], None],
    options: Options,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM, or until `stop` is set if it is given.

    Raises ProcessError, SettingsRefused, and the error that ended a part.
    """

    async def prepare(process: Process, stack: AsyncExitStack) -> list[Stage]:
        return await gateway_stages(process, stack, options)

    await run(fleet, listen, announce, prepare, stop)


async def gateway_stages(process: Process, stack: AsyncExitStack, options: Options) -> list[Stage]:
    """Add the gateway's parts to the process, and return its stages.

    Raises ProcessError, SettingsRefused, PepperProblem and KeyringError.
    """
    store = _open_store(options.store_url)
    stack.callback(store.close)
    waiting = Waiting(process.clock)
    _add_relay(process, options, store)
    if "view" in options.roles:
        _add_view(process, store, waiting)
    shelf = _shelf(store, options.store_url, process.clock)
    stack.callback(shelf.close)
    _measure(process, options.store_url)
    _watch_peers(process, stack, shelf)
    clerk = _clerk(process, shelf) if "expansion" in options.roles else None
    if "door" in options.roles:
        _add_door(process, stack, options, waiting, shelf, clerk, await open_screen(stack))
    return [] if clerk is None else [_expansion(process, shelf, clerk)]


def _open_store(url: str) -> Store:
    """Open the database. Raises Unusable."""
    try:
        return Store.open(url)
    except StoreAway as away:
        raise Unusable(str(away)) from None


def _add_relay(process: Process, options: Options, store: Store) -> None:
    """Add the relay if it is among the roles. Always add `Acceptance`, because every role may write into the outbox."""
    kafka, clock, metrics = process.fleet.kafka, process.clock, process.metrics
    acceptance = Acceptance(store, kafka, read_settings(StoreSettings), clock, metrics)
    process.beside.append(acceptance)
    if "door" in options.roles:
        # A door is ready while it can accept work. Without Kafka it still can: the outbox holds the accepted records.
        process.ready_by = [acceptance]
    if "relay" in options.roles:
        process.beside.append(Relay(store, kafka, clock, metrics, process.fleet.trust.secrets))
        process.duties.append("puts accepted records on Kafka")


def _shelf(store: Store, store_url: str, clock: Clock) -> Shelf:
    """Return the files of all tenants. Raises Unusable and SettingsRefused."""
    settings = read_settings(FilesSettings)
    try:
        return Shelf(store, open_blobs(settings, store_url), settings, clock)
    except BlobsAway as away:
        raise Unusable(str(away)) from None


def _measure(process: Process, store_url: str) -> None:
    """Show the free space of the store's disks as metrics."""
    database = sqlite_file(store_url)
    folders = {
        "database": database.parent if database is not None else None,
        "files": folder_of(read_settings(FilesSettings), store_url),
    }
    measure_disks(process.metrics, folders)


def _watch_peers(process: Process, stack: AsyncExitStack, shelf: Shelf) -> None:
    """Ask the store, the storage of files and Redis every few seconds, so that alerts know their silence."""
    peers = PeerWatch(process.metrics, process.clock)
    stack.callback(peers.close)
    peers.watch("store", lambda: shelf.store.read_now(lambda connection: connection.execute(select(1)).scalar()))
    peers.watch("files", partial(has_answer, shelf.blobs))
    peers.watch_redis(read_settings(AccessSettings).redis_url, read_settings(DeltaSettings).redis_url)


def _clerk(process: Process, shelf: Shelf) -> Clerk:
    """Return the clerk of batches: it applies the tenants' settings, and announces batches. Raises SettingsRefused."""
    store, topics, clock = shelf.store, process.fleet.kafka.topics, process.clock
    defaults = read_settings(AccessSettings).tenant_defaults

    def settings_of(tenant: str) -> TenantSettings:
        return store.read_now(lambda connection: find_tenant(connection, tenant)) or defaults

    def ended(connection: Connection, row: BatchRow) -> None:
        release(connection, of_batches={(row.tenant, row.id): None})
        batch_ended(connection, topics, clock, row.tenant, row.id, row.status)

    return Clerk(shelf, topics, settings_of, ended)


def _expansion(process: Process, shelf: Shelf, clerk: Clerk) -> Stage:
    """Add the clerk of batches, and return the stage that turns batches into jobs. Raises SettingsRefused."""
    kafka, clock, metrics = process.fleet.kafka, process.clock, process.metrics
    topics = kafka.topics
    partitions = PartitionCounts(kafka, clock)
    handler = ExpansionHandler(topics, shelf, partitions, clock, metrics, process.fleet.trust.secrets)
    process.beside.append(clerk)
    process.duties.append(f"expands batches from topic {topics.batch_requests}")
    outputs = [topics.requests(), topics.requests(bulk=True), topics.results, topics.dead_letters]
    return group_stage(
        StageSettings(EXPANSION_GROUP, Limits(RANGES_AT_ONCE)),
        kafka,
        [topics.batch_requests],
        process.replica,
        handler,
        clock,
        metrics,
        outputs=outputs,
        last_resort=last_resort.for_callbacks(topics, metrics),
    )


def _add_view(process: Process, store: Store, waiting: Waiting) -> None:
    """Add the view, with the functions that it calls for each result, in the transaction that writes its row."""
    kafka, clock = process.fleet.kafka, process.clock
    hooks: tuple[OnResults, ...] = (fanning_out(kafka.topics, clock),)
    process.beside.append(TopicView(store, kafka, hooks, waiting, clock, process.metrics))
    process.beside.append(Retention(store, read_settings(StoreSettings).kept_days, clock))
    process.duties.append(f"reads results from topic {kafka.topics.results}")


def _add_door(
    process: Process,
    stack: AsyncExitStack,
    options: Options,
    waiting: Waiting,
    shelf: Shelf,
    clerk: Clerk | None,
    screen: Screen | None,
) -> None:
    """Bind the door's port, and add the door's server. Raises ProcessError and SettingsRefused."""
    clock, limits = process.clock, read_settings(GatewaySettings)
    bound = _bound(options.host, options.port)
    stack.callback(bound.close)
    tls = _tls(options, limits, clock, process.metrics)
    if tls is None and not (limits.plain_http or (process.development and _is_loopback(bound))):
        raise TlsMissing(TlsMissing.__doc__)
    access = Access.open(shelf.store, options.store_url, read_settings(AccessSettings), clock, tls)
    stack.callback(access.close)
    stack.push_async_callback(access.rates.close)
    policy = read_settings(EgressSettings).callback_policy(development=process.development)
    if screen is not None:
        process.metrics.screened.begin()
    door = Door(
        fleet=process.fleet,
        settings=limits,
        callbacks=policy,
        store=shelf.store,
        access=access,
        waiting=waiting,
        shelf=shelf,
        models=FleetModels(partial(read_announcements, process.fleet.kafka, clock), shelf.store, clock),
        screen=screen,
        audit=_audit(limits, clock, stack),
        webhooks=_sending(process, stack, policy),
        clock=clock,
        metrics=process.metrics,
        deltas=_deltas(process),
        batches_changed=nothing if clerk is None else clerk.wake,
    )
    stack.callback(door.close)
    context, look = (None, nothing) if tls is None else (tls.context, tls.look)
    app = create_app(door, [page_routes])
    server = DoorServer(app, bound, context, limits, clock, process.metrics, look)
    process.fronts.append(server)
    if process.ready_by is not None:
        process.ready_by.append(server)
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"{'http' if tls is None else 'https'}://{host}:{bound.getsockname()[1]}"
    process.duties.append(f"serves the API at {url}/v1 and the console page at {url}{CONSOLE}")
    options.announce(url)


def _deltas(process: Process) -> DeltaListeners | None:
    """Return the channels of answers while they are generated, as a part of the process; None without their Redis."""
    url = read_settings(DeltaSettings).redis_url
    if url is None:
        return None
    deltas = DeltaListeners(url.get_secret_value(), process.fleet.kafka.topic_prefix)
    process.beside.append(deltas)
    return deltas


def _audit(limits: GatewaySettings, clock: Clock, stack: AsyncExitStack) -> Audit:
    """Return the audit. Raises Unusable."""
    try:
        audit = Audit(limits.audit_file, clock, "gateway")
    except OSError as error:
        raise Unusable(f"POSTBACK_GATEWAY__AUDIT_FILE cannot be opened ({error.strerror}); check it") from None
    stack.callback(audit.close)
    return audit


def _sending(process: Process, stack: AsyncExitStack, policy: EgressPolicy) -> Sending | None:
    """Return the keys of webhook endpoints; None if no keyring is set. Raises KeyringError and SettingsRefused."""
    if process.fleet.keyring is None:
        return None
    poster = Poster(read_settings(DeliverySettings), policy, process.clock)
    stack.push_async_callback(poster.close)
    return Sending(Keyring.load(process.fleet.keyring), poster, process.clock)


def _tls(options: Options, limits: GatewaySettings, clock: Clock, metrics: Metrics) -> DoorTls | None:
    """Return the door's TLS, or None for plain HTTP. Raises ProcessError."""
    if options.tls_cert is None:
        if any(file is not None for file in (options.tls_key, options.client_ca, options.client_crl)):
            raise TlsMissing("--tls-key, --client-ca and --client-crl need --tls-cert; give the server's certificate")
        return None
    if options.client_crl is not None and options.client_ca is None:
        raise TlsMissing("--client-crl needs --client-ca; give the authority that signed the list")
    required = limits.client_certificates == "required"
    if required and options.client_ca is None:
        raise TlsMissing(
            "POSTBACK_GATEWAY__CLIENT_CERTIFICATES=required needs --client-ca; give the authority of the clients"
        )
    files = TlsFiles(options.tls_cert, options.tls_key, options.client_ca, options.client_crl, required)
    return DoorTls(files, clock, metrics)


def _is_loopback(bound: socket.socket) -> bool:
    return ip_address(bound.getsockname()[0]).is_loopback


def _bound(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises CannotListen."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise CannotListen(
            f"the API cannot be served on port {port} of {host} ({error.strerror}); choose another --port or --host"
        ) from None


def measure_disks(metrics: Metrics, folders: Mapping[str, Path | None]) -> None:
    """Show the size and the free space of each folder's disk as metrics. None stands for content on another machine.

    Each scrape asks the operating system again. A vanished folder has the value NaN.
    """
    for content, folder in folders.items():
        if folder is not None:
            metrics.store_free_bytes.labels(content).set_function(partial(_free, folder))
            metrics.store_disk_bytes.labels(content).set_function(partial(_size, folder))


def _free(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return math.nan


def _size(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return math.nan
