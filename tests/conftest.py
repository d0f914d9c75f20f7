"""Shared fixtures: one real broker for the session, topics for each test, and a check for stray processes."""

from __future__ import annotations

import logging
import os
import signal
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import hypothesis
import psutil
import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from kafka.net.inet import KafkaNetSocket
from kafka.net.selector import NetworkSelector

from cli.devkit.broker import Broker
from cli.operations.topics import create_topics
from gateway.store.store import Store
from producers.connection import admin_client
from schemas.settings import KafkaSettings
from telemetry.clock import Deadline, SystemClock
from tests.postgres_server import PostgresServer
from tests.product import PARTITIONS, Product, running
from tests.services import address, services_of

pytest_plugins = ("tests.suite",)

if TYPE_CHECKING:
    from tests.fleet_here import FleetHere

TIER_DELAYS_SECONDS = (0.3, 0.6)
_ADMIN_TIMEOUT_SECONDS = 30.0
_EXIT_GRACE_SECONDS = 5.0
_MARK = "STARTED_BY_A_TEST_OF_POSTBACK"
_SHOWN = "shown"

DATABASES = ("sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql))
"""The databases of the gateway's store, as parameters of a fixture."""

# There is no deadline, because Hypothesis' default of 200 ms for an example would test the machine's speed. Each run
# has the same examples, so that a failure is due to the change that is tested; only `hunt` draws new ones, each night.
hypothesis.settings.register_profile("postback", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("fast", deadline=None, derandomize=True, max_examples=20)
hypothesis.settings.register_profile("hunt", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("postback")


@dataclass(frozen=True, slots=True)
class SharedBroker:
    """The Kafka that all tests share: a test that stops, kills or pauses brokers starts its own `Broker`."""

    bootstrap_servers: str


class MakeFleet(Protocol):
    """Type of the fixture `make_fleet`."""

    def __call__(self, bootstrap_servers: str, replication_factor: int = 1) -> KafkaSettings:
        """Make a fleet's topics and return its settings."""
        ...


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest) -> Iterator[SharedBroker]:
    """The run's Kafka: the one at POSTBACK_KAFKA__BOOTSTRAP_SERVERS if set, else one for all processes of the run."""
    external = os.environ.get("POSTBACK_KAFKA__BOOTSTRAP_SERVERS")
    if external:
        yield SharedBroker(external)
    elif folder := services_of(request.config):
        yield SharedBroker(address(folder, "kafka"))
    else:
        with Broker.start() as own:
            yield SharedBroker(own.bootstrap_servers)


@pytest.fixture(scope="session", autouse=True)
def _kafka_python_closes_its_sockets() -> Iterator[None]:
    """Close the sockets that kafka-python 3.0.12 leaves open.

    Its clients end with connections that are still being made, or have data to send, and forget those that were
    refused. Python's collector then warns of open sockets during any later test.
    """
    close, connect = NetworkSelector.close, KafkaNetSocket.sock_connect

    def close_all(net: NetworkSelector) -> None:
        sockets = [key.fileobj for key in net._selector.get_map().values()] if not net._closed else []
        close(net)
        for each in sockets:
            each.close()

    async def connect_or_close(
        own: KafkaNetSocket, net: NetworkSelector, sock: socket.socket, address: object, timeout_at: float | None = None
    ) -> socket.socket:
        try:
            connected: socket.socket = await connect(own, net, sock, address, timeout_at)
        except BaseException:
            sock.close()
            raise
        return connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NetworkSelector, "close", close_all)
        patch.setattr(KafkaNetSocket, "sock_connect", connect_or_close)
        yield


@pytest.fixture(scope="module")
def topic_config() -> dict[str, str]:
    """The topic properties of `fleet` and `module_fleet`: none, unless a module overrides this fixture."""
    return {}


@pytest.fixture
def fleet(broker: SharedBroker, topic_config: dict[str, str]) -> Iterator[KafkaSettings]:
    """Settings of a fleet for one test, with its topics; the topics are deleted when the test ends."""
    with _passing_fleet(broker, topic_config) as settings:
        yield settings


@pytest.fixture(scope="module")
def module_fleet(broker: SharedBroker, topic_config: dict[str, str]) -> Iterator[KafkaSettings]:
    """One fleet for all tests of a module, which must tolerate each other's records."""
    with _passing_fleet(broker, topic_config) as settings:
        yield settings


@contextmanager
def _passing_fleet(broker: SharedBroker, topic_config: dict[str, str]) -> Iterator[KafkaSettings]:
    settings = _make_fleet(broker.bootstrap_servers, topic_config=topic_config)
    yield settings
    admin = AdminClient(settings.client_config())
    for deleted in admin.delete_topics([spec.name for spec in settings.topics.specs(PARTITIONS)]).values():
        deleted.result(_ADMIN_TIMEOUT_SECONDS)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """The run's PostgreSQL, which all tests share: a test that kills a server starts its own."""
    if folder := services_of(request.config):
        yield PostgresServer(port=int(address(folder, "postgresql")))
    else:
        with PostgresServer() as own:
            yield own


@pytest.fixture(params=DATABASES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database; a test that asks for it runs on both databases."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An empty store; a test that asks for it runs on both databases."""
    opened = Store.open(store_url)
    yield opened
    opened.close()


@pytest.fixture
def make_fleet() -> MakeFleet:
    """For tests with a broker of their own: `make_fleet(bootstrap_servers, replication_factor=1)`.

    Makes a new fleet's topics there, with 4 partitions and retry tiers of 0.3 and 0.6 s, and returns its settings.
    """
    return _make_fleet


def _make_fleet(
    bootstrap_servers: str, replication_factor: int = 1, topic_config: Mapping[str, str] = MappingProxyType({})
) -> KafkaSettings:
    settings = KafkaSettings(
        bootstrap_servers=bootstrap_servers,
        topic_prefix=f"t{uuid.uuid4().hex[:10]}.",
        partitions=PARTITIONS,
        replication_factor=replication_factor,
        tier_delays_seconds=TIER_DELAYS_SECONDS,
    )
    topics = [
        NewTopic(spec.name, spec.partitions, replication_factor, config={**spec.config, **topic_config})
        for spec in settings.topics.specs(PARTITIONS)
    ]
    admin = AdminClient(settings.client_config())
    for created in admin.create_topics(topics).values():
        created.result(_ADMIN_TIMEOUT_SECONDS)
    with admin_client(settings) as waiting:  # a busy broker may know its new topics only seconds later
        waiting.wait_for_topics([topic.topic for topic in topics], timeout_ms=1000 * _ADMIN_TIMEOUT_SECONDS)
    return settings


@pytest.fixture
def product(fleet: KafkaSettings, tmp_path: Path, clean_processes: None) -> Iterator[Product]:
    """The fleet's product; no process runs yet."""
    with running(fleet, tmp_path) as started:
        yield started


@pytest.fixture
def fleet_here(fleet: KafkaSettings, tmp_path: Path, clean_processes: None) -> Iterator[FleetHere]:
    """The fleet with its roles in this process; no role runs yet."""
    from tests.fleet_here import running_here

    with running_here(fleet, tmp_path) as started:
        yield started


@pytest.fixture
def product_with_tiers(fleet: KafkaSettings, tmp_path: Path, clean_processes: None) -> Iterator[Callable[..., Product]]:
    """A function that makes a product with other tiers, given in seconds."""
    with ExitStack() as stack:

        def make(*tiers: float) -> Product:
            kafka = fleet.model_copy(update={"tier_delays_seconds": tiers, "partitions": PARTITIONS})
            create_topics(kafka)
            return stack.enter_context(running(kafka, tmp_path))

        yield make


@pytest.fixture
def show(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A function that adds a line of evidence to the run's summary, which pytest shows despite capturing."""
    # Store the line as a property of the test, because properties come with the test's report even from another
    # process.
    return lambda line: request.node.user_properties.append((_SHOWN, line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the lines of evidence that tests gave to `show`."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, line in report.user_properties:
            if name == _SHOWN:
                terminalreporter.write_line(f"{report.nodeid}: {line}")


@pytest.fixture(autouse=True)
def no_swallowed_task_error() -> Iterator[None]:
    """Fail the test if one of its asyncio tasks or callbacks raised an error that was never retrieved.

    asyncio only logs such errors. Errors in threads and destructors are pytest warnings, which count as errors here.
    """
    swallowed = _Swallowed()
    logger = logging.getLogger("asyncio")
    logger.addHandler(swallowed)
    yield
    logger.removeHandler(swallowed)
    if swallowed.errors:
        pytest.fail("asyncio only logged:\n" + "\n".join(swallowed.errors))


class _Swallowed(logging.Handler):
    """Collects asyncio's log lines about errors that were never retrieved, and ignores those about connections."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.setFormatter(logging.Formatter())
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if any(sign in record.getMessage() for sign in ("never retrieved", "Exception in callback")):
            self.errors.append(self.format(record))


@pytest.fixture
def clean_processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test if a process that it started, or a descendant of one, still runs 5 s after the test's end.

    Every process inherits a mark in its environment, so orphans and leaders of their own sessions are found too.
    Each process that is found is killed.
    """
    mark = uuid.uuid4().hex
    monkeypatch.setenv(_MARK, mark)
    yield
    deadline = Deadline.after(SystemClock(), _EXIT_GRACE_SECONDS)
    while (left := _marked(mark)) and not deadline.passed:
        deadline.clock.sleep(0.05)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if left:
        commands = [f"{pid}: {command[:200]}" for pid, command in left.items()]
        pytest.fail("processes outlived the test:\n" + "\n".join(commands))


def _marked(mark: str) -> dict[int, str]:
    """Map the pid of each process that was started with this mark to its command line; zombies are left out.

    multiprocessing's resource tracker is left out: it ends with this process, not with its first user.
    """
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # the process ended, is a zombie, or belongs to another user
            if process.environ().get(_MARK) == mark:
                found[process.pid] = " ".join(process.cmdline())
    return {pid: command for pid, command in found.items() if "multiprocessing.resource_tracker" not in command}
