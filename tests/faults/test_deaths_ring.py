"""Each death and each hang of a role or of a peer rings within 120 s, with the rules and the times as delivered.

A fleet of real processes has victims, which are stopped and later killed, and survivors, which notice the deaths of
their peers. All victims of a round fall at the same time; promtool's tests show that each rule follows its own series.
With POSTBACK_MEASURED set, the test writes its seconds into the file that OPERATIONS' table is made from.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
import pytest
import requests

from cli.devkit.broker import Broker
from scripts.publish.reference import MEASURED, ROOT, RULES
from telemetry.clock import SystemClock
from tests.conftest import MakeFleet
from tests.integration.gateway.gateway_process import Gateway, start_gateway
from tests.postgres_server import PostgresServer
from tests.product import Product, RoleProcess, eventually, running
from tests.prometheus_tools import Prometheus, free_port, scraping
from tests.redis_server import RedisServer
from tests.s3_server import ACCESS, SECRET, s3_server

pytestmark = pytest.mark.timeout(1_500)

CLOCK = SystemClock()
PROMISED_SECONDS = 120.0
QUIET_SECONDS = 240.0
"""Longest time until all alerts are silent, at the start and after the victims go on."""
DELIVERED = {"scrape_interval": "15s", "evaluation_interval": "15s"}
"""The intervals of helm/postback/files/prometheus/prometheus.yml."""
ROLES = {f"PostbackRoleDown {role}" for role in ("worker", "delivery", "gateway", "exporter")}
FIRST = ROLES | {"PostbackNoDelivery"}
ONE_BROKER = {"PostbackBrokerAway"}
"""Only for a killed broker: a frozen one holds the exporter's reading, so KafkaAway may ring instead."""
SECOND = {
    f"Postback{name}"
    for name in ("KafkaAway", "FiguresStale", "StoreAway", "FilesAway", "RedisAway", "ModelServerAway")
}
REFUSING = {"PostbackDoorErrors"}
"""A store that refuses every job: its database is read-only, or dead."""
MODEL_SERVER = (
    "import sys; from aiohttp import web; from tests.integration.openai_server import echo_app;"
    "web.run_app(echo_app(), host='127.0.0.1', port=int(sys.argv[1]), print=None)"
)


@dataclass
class Rig:
    """The fleet, its peers, and Prometheus."""

    product: Product
    broker: Broker
    postgres: PostgresServer
    peers: list[psutil.Process]
    """S3, Redis and the model server."""
    victims: list[RoleProcess]
    survivor: Gateway
    key: str
    prometheus: Prometheus
    measured: dict[str, dict[str, int]] = field(default_factory=dict)

    def alerts(self) -> set[str]:
        """The firing alerts; a role's death has the role's name behind it."""
        answer = requests.get(f"{self.prometheus.url}/api/v1/alerts", timeout=30).json()
        firing = [one["labels"] for one in answer["data"]["alerts"] if one["state"] == "firing"]
        return {f"{labels['alertname']} {labels.get('job', '').removeprefix('postback-')}".strip() for labels in firing}

    def measure(self, fault: str, wanted: set[str]) -> None:
        """Wait until all wanted alerts fire, and keep the seconds that each of them took."""
        began, seen = CLOCK.monotonic(), self.measured.setdefault(fault, {})

        def all_fire() -> bool:
            for name in (self.alerts() & wanted) - seen.keys():
                seen[name] = round(CLOCK.monotonic() - began)
            return wanted <= seen.keys()

        eventually(all_fire, PROMISED_SECONDS, lambda: f"{fault}: {sorted(wanted - seen.keys())} never fired: {seen}")

    def wait_for_quiet(self) -> None:
        """Wait until none of the deaths' alerts fires; a slow machine may raise others, such as DoorSlow."""
        ours = FIRST | ONE_BROKER | SECOND | REFUSING
        eventually(lambda: not self.alerts() & ours, QUIET_SECONDS, lambda: f"still firing: {sorted(self.alerts())}")


def test_each_death_and_each_hang_of_a_role_or_peer_rings_within_120_s(
    make_fleet: MakeFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, show: Callable[[str], None]
) -> None:
    for name, value in (("ACCESS_KEY_ID", ACCESS), ("SECRET_ACCESS_KEY", SECRET), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with ExitStack() as stack:
        rig = stack.enter_context(_rig(make_fleet, tmp_path))
        stack.enter_context(_clients(rig))
        rig.wait_for_quiet()

        rig.postgres.command("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
        rig.measure("read-only", REFUSING)
        rig.postgres.command(
            "SET default_transaction_read_only = off",
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        )
        with ExitStack() as stopped:
            _stop(stopped, rig, roles=True)
            rig.measure("SIGSTOP", FIRST)
            _stop(stopped, rig, roles=False)
            rig.measure("SIGSTOP", SECOND)
        rig.wait_for_quiet()

        for victim in rig.victims:
            victim.kill()
        rig.measure("SIGKILL", FIRST)
        rig.broker.kill(2)
        rig.measure("SIGKILL", ONE_BROKER)
        rig.postgres.kill()
        for process in rig.peers:
            process.kill()
        for index in (0, 1):
            rig.broker.kill(index)
        rig.measure("SIGKILL", SECOND | REFUSING)

    assert {fault: set(seen) for fault, seen in rig.measured.items()} == {
        "read-only": REFUSING,
        "SIGSTOP": FIRST | SECOND,
        "SIGKILL": FIRST | ONE_BROKER | SECOND | REFUSING,
    }
    show(f"seconds from the fault to the alert: {json.dumps(rig.measured, sort_keys=True)}")
    if os.environ.get("POSTBACK_MEASURED"):
        MEASURED.write_text(json.dumps(rig.measured, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _stop(stack: ExitStack, rig: Rig, *, roles: bool) -> None:
    """Freeze the first or the second victims; the block's end lets them go on."""
    if roles:
        processes = [psutil.Process(victim.process.pid) for victim in rig.victims]
    else:
        processes = [*rig.peers, *rig.postgres.processes()]
        for index in range(3):
            rig.broker.pause(index)
            stack.callback(rig.broker.resume, index)
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGSTOP)
            stack.callback(_resume, process)


def _resume(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGCONT)


@contextmanager
def _rig(make_fleet: MakeFleet, folder: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        broker = stack.enter_context(Broker.start(brokers=3))
        postgres = stack.enter_context(PostgresServer())
        redis = stack.enter_context(RedisServer(folder))
        s3 = stack.enter_context(s3_server(folder / "s3" / "data", "files"))
        model_port = stack.enter_context(_model_server(folder))
        product = stack.enter_context(running(make_fleet(broker.bootstrap_servers, 3), folder))
        product.callbacks.up()
        asked = {"POSTBACK_ENGINE__OPENAI__BASE_URL": f"http://127.0.0.1:{model_port}/v1"}
        asked |= {"POSTBACK_CACHE__REDIS_URL": redis.url}
        workers = [product.worker(name, "--engine", "openai", "--model", "echo-1", **asked) for name in ("w1", "w2")]
        door: dict[str, Any] = {"POSTBACK_FILES__PLACE": "s3://files", "AWS_ENDPOINT_URL_S3": s3}
        door |= {"POSTBACK_ACCESS__REDIS_URL": redis.url}
        url = postgres.new_database()
        gateways = [start_gateway(product, store=url, replica="g1", **door)]
        gateways[0].wait_until_ready()
        gateways.append(start_gateway(product, store=url, replica="g2", **door))
        gateways[1].wait_until_ready()
        deliveries, exporters = [product.deliver("d1")], [product.exporter("e1"), product.exporter("e2")]
        doors = [gateway.role for gateway in gateways]
        ports = {
            "postback-worker": [each.port for each in workers],
            "postback-gateway": [each.port for each in doors],
            "postback-delivery": [each.port for each in deliveries],
            "postback-exporter": [each.port for each in exporters],
        }
        more = {
            "global": DELIVERED,
            "rule_files": [str(RULES)],
        }
        prometheus = stack.enter_context(scraping(folder, ports, **more))
        servers = [_listener(port) for port in (redis.port, int(s3.rpartition(":")[2]), model_port)]
        victims = [workers[0], doors[0], deliveries[0], exporters[0]]
        chosen = [each for each in victims if isinstance(each, RoleProcess)]
        yield Rig(product, broker, postgres, servers, chosen, gateways[1], gateways[1].key(), prometheus)


@contextmanager
def _model_server(folder: Path) -> Iterator[int]:
    """Run a server that speaks OpenAI's protocol, as a process; yield its port."""
    port = free_port()
    with (folder / "model-server.log").open("wb") as log:
        command = [sys.executable, "-c", MODEL_SERVER, str(port)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def _listener(port: int) -> psutil.Process:
    """Return the child of this process that listens on a port, once there is one."""
    found: list[psutil.Process] = []

    def listens() -> bool:
        children = psutil.Process().children(recursive=True)
        found[:] = [
            each
            for each in children
            if any(one.laddr.port == port for one in each.net_connections("tcp") if one.status == psutil.CONN_LISTEN)
        ]
        return bool(found)

    eventually(listens, 60, f"no child listens on port {port}")
    return found[0]


@contextmanager
def _clients(rig: Rig) -> Iterator[None]:
    """Post a job to the surviving gateway twice a second."""
    ended = Event()
    job = {"prompt": "Why?", "callback_url": rig.product.callbacks.url}

    def post() -> None:
        while not ended.wait(0.5):
            with suppress(requests.RequestException):
                rig.survivor.post("/v1/jobs", rig.key, json=job, timeout=10)

    thread = Thread(target=post)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
