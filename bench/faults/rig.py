"""The fleet of one cell: three brokers, stores, two processes of each role, and a Prometheus with our rules."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import psutil
import requests

from bench.committed import committed_records
from bench.faults.judge import Job
from bench.faults.outside import MODEL, Outside
from bench.fleet import POSTBACK, START_SECONDS, Command, wait_for
from bench.result import ROOT
from cli.devkit.broker import Broker
from cli.operations.certificates import LEAF_DAYS, Leaf, init, issue
from cli.operations.topics import configure_groups, create_topics
from schemas.codec import read_result
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from tests.postgres_server import PostgresServer
from tests.prometheus_tools import Prometheus, free_port, scraping
from tests.redis_server import RedisServer
from tests.s3_server import ACCESS, SECRET, s3_server
from workers.delivery.keyring import Keyring

RULES = ROOT / "helm" / "postback" / "files" / "prometheus" / "postback.rules.yml"
DELIVERED = {"scrape_interval": "15s", "evaluation_interval": "15s"}
"""The intervals of helm/postback/files/prometheus/prometheus.yml."""
SHORT = "for: 15s"
"""Rules that wait for minutes wait for this time here: a cell lasts three minutes."""
TIERS = (1, 5, 15, 30, 60)
"""Waits between the attempts of a callback, in seconds; the default's second wait of five minutes outlasts a cell."""
PARTITIONS = 4
RATE = 5.0
CLOCK = Path(__file__).with_name("clock.c")
BOUND = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
"""The command that gives a process our name server. Needs root."""
ROLES = ("worker", "deliver", "gateway", "exporter")
TENANT = "bench"


Needs = Literal[
    "", "clocks", "echo", "names", "tls", "small disk of a broker", "small disk of logs", "small disk of the store"
]
"""The wish of a cell for its fleet: processes 1 with clocks of their own, workers with the engine `echo`, a receiver
with a name, gateways over TLS, or a disk of SMALL_BYTES."""
SMALL_BYTES = 400 * 1024 * 1024
HOST = "hooks.example"
NAME_SERVER = "127.0.0.53"


class Rig:
    """A running fleet. The processes are named `worker-1`, `worker-2`, `deliver-1`, and so on."""

    def __init__(self, folder: Path, needs: Needs) -> None:
        self.folder = folder
        self.needs = needs
        self.disk = folder / "disk"
        self.authority = folder / "authority"
        self.closing = ExitStack()
        """Servers that a fault started, which end with the fleet."""
        self.alerts: dict[str, float] = {}
        """Unix seconds at which each alert fired first in the cell that runs."""
        self.firing: set[str] = set()
        self.restarts: Counter[str] = Counter()
        self.processes: dict[str, Command] = {}
        self.down: set[str] = set()
        """Processes that the fault keeps from starting again."""
        self._ports: dict[str, int] = {f"{role}-{n}": free_port() for role in ROLES for n in (1, 2)}
        self.door_ports = {"gateway-1": free_port(), "gateway-2": free_port()}
        """The gateways' ports for clients."""
        self._lock = threading.RLock()
        self._over = threading.Event()

    @contextmanager
    def running(self) -> Iterator[Rig]:
        """Start all, and end all with the block."""
        with ExitStack() as stack:
            if self.needs.startswith("small disk"):
                stack.enter_context(small_disk(self.disk))
            self._start_peers(stack)
            stack.enter_context(self.closing)
            stack.callback(self._kill_all)
            self._start_roles()
            self.prometheus = stack.enter_context(self._watched_by_prometheus())
            stack.enter_context(self._kept())
            yield self

    # -- peers -----------------------------------------------------------------------------------------------------

    def _start_peers(self, stack: ExitStack) -> None:
        keyring = Keyring.create(self.folder / "keyring.json", SystemClock())
        self.outside = stack.enter_context(Outside(keyring))
        self.broker = stack.enter_context(Broker.start(brokers=3))
        if self.needs == "small disk of a broker":
            self._move_to_small_disk(self.broker.data / "node-3")
        with temporary_folder(self.disk if self.needs == "small disk of the store" else None):
            self.postgres = stack.enter_context(PostgresServer())
        self.redis = stack.enter_context(RedisServer(self.folder))
        self.s3 = stack.enter_context(s3_server(self.folder / "s3" / "data", "files"))
        self.kafka = KafkaSettings(
            bootstrap_servers=self.broker.bootstrap_servers,
            partitions=PARTITIONS,
            replication_factor=3,
            tier_delays_seconds=TIERS,
        )
        create_topics(self.kafka)
        configure_groups(self.kafka)
        self.store = self.postgres.new_database()
        # The authority is as old as a certificate, so that a fault can give out one that is about to end.
        then = datetime.now(UTC) - timedelta(days=LEAF_DAYS)
        init(self.authority, then)
        self.certificate = issue(self.authority, Leaf.server("door", ("127.0.0.1",)), datetime.now(UTC)).certificate
        if self.needs == "names":
            self.outside.serve_names(NAME_SERVER, HOST)
            (self.folder / "resolv.conf").write_text(f"nameserver {NAME_SERVER}\n", encoding="utf-8")
        if self.needs == "clocks":
            subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", self.folder / "clock.so", CLOCK, "-ldl"], check=True)

    def _move_to_small_disk(self, node: Path) -> None:
        self.broker.kill(2)
        shutil.move(node, self.disk)
        node.symlink_to(self.disk / node.name)
        self.broker.restart(2)

    # -- roles -----------------------------------------------------------------------------------------------------

    def _start_roles(self) -> None:
        first = [name for name in self._ports if name != "gateway-2"]
        for name in first:
            self._launch(name)
        for name in first:
            self.processes[name].__enter__()
        wait_for(lambda: self.processes["gateway-1"].ready(), START_SECONDS)  # it has made the store's tables
        self._launch("gateway-2")
        self.processes["gateway-2"].__enter__()
        for name in ("gateway-2", "worker-1", "worker-2", "deliver-1", "deliver-2"):
            wait_for(lambda name=name: self.processes[name].ready(), START_SECONDS)  # type: ignore[misc]
        made = subprocess.run(
            [POSTBACK, "api-keys", "create", "--tenant", TENANT, "--json", "--store", self.store],
            env=os.environ | self._of_gateway(), capture_output=True, check=True, text=True,
        )  # fmt: skip
        self.key = str(json.loads(made.stdout)["key"])

    def _launch(self, name: str) -> None:
        role = name.partition("-")[0]
        arguments = [role, "--metrics-port", str(self._ports[name])]
        variables = {"POSTBACK_REPLICA": name, "POSTBACK_KEYRING": str(self.folder / "keyring.json")}
        variables["POSTBACK_KAFKA__TIER_DELAYS_SECONDS"] = json.dumps(TIERS)
        if role == "exporter":
            arguments[1] = "--port"
        if role == "worker":
            arguments += ["--engine", "echo"] if self.needs == "echo" else ["--engine", "openai", "--model", MODEL]
            variables["POSTBACK_ENGINE__OPENAI__BASE_URL"] = f"http://127.0.0.1:{self.outside.model.port}/v1"
            variables["POSTBACK_CACHE__REDIS_URL"] = self.redis.url
        if role == "gateway":
            arguments += ["--port", str(self.door_ports[name]), "--store", self.store]
            if self.needs == "tls":
                key = self.certificate.with_suffix(".key")
                arguments += ["--tls-cert", str(self.certificate), "--tls-key", str(key)]
            variables |= self._of_gateway()
        through: tuple[str, ...] = ()
        if self.needs == "names" and role == "deliver":
            through = "unshare", "--mount", "sh", "-c", BOUND, "sh", str(self.folder / "resolv.conf")
        if self.needs == "clocks" and name.endswith("-1"):
            variables |= {"LD_PRELOAD": str(self.folder / "clock.so"), "CLOCK_FILE": str(self.folder / f"clock-{name}")}
            self.set_clock(name, 0)
        with temporary_folder(self.disk if self.needs == "small disk of logs" else None):
            self.processes[name] = Command(self.kafka, *arguments, through=through, **variables)

    def _of_gateway(self) -> dict[str, str]:
        return {
            "POSTBACK_ENV": "development",
            "POSTBACK_ACCESS__PEPPER_FILE": str(self.folder / "pepper"),
            "POSTBACK_ACCESS__REDIS_URL": self.redis.url,
            "POSTBACK_FILES__PLACE": "s3://files",
            "AWS_ENDPOINT_URL_S3": self.s3,
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def set_clock(self, name: str, seconds: int) -> None:
        """Move the clock of a process by so many seconds. The process maps this file, so it is changed in place."""
        clock = self.folder / f"clock-{name}"
        clock.touch()
        with clock.open("r+b") as file:
            file.write(f"{seconds:+5d}".ljust(16).encode())

    def kill(self, name: str) -> None:
        """Send SIGKILL; the process stays away until `start`."""
        with self._lock:
            self.down.add(name)
            self.processes[name].kill()

    def start(self, name: str) -> None:
        """Start a killed process again, and return when it serves its metrics."""
        with self._lock:
            self._launch(name)
            self.down.discard(name)
        self.processes[name].__enter__()

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process."""
        self.processes[name].process.send_signal(number)

    def _kill_all(self) -> None:
        for process in self.processes.values():
            with suppress(psutil.NoSuchProcess):
                process.process.send_signal(signal.SIGCONT)
            process.kill()

    # -- load and alerts -------------------------------------------------------------------------------------------

    def start_load(self) -> None:
        """Let the clients post jobs to both gateways."""
        scheme = "https" if self.needs == "tls" else "http"
        doors = [f"{scheme}://127.0.0.1:{port}" for port in self.door_ports.values()]
        authority = str(self.authority / "ca.pem") if self.needs == "tls" else None
        host = HOST if self.needs == "names" else "127.0.0.1"
        self.outside.start_load(doors, self.key, RATE, host, authority)

    def post(self, job: Mapping[str, object]) -> None:
        """Post one job. Raises RuntimeError if the first gateway refuses it."""
        url = f"http://127.0.0.1:{self.door_ports['gateway-1']}/v1/jobs"
        answer = requests.post(url, json=job, headers={"authorization": f"Bearer {self.key}"}, timeout=30)
        if answer.status_code != 202:
            raise RuntimeError(f"{answer.status_code}: {answer.text}")

    def jobs(self, first: int = 0) -> list[Job]:
        """Return the jobs from this number on."""
        return list(self.outside.jobs.values())[first:]

    def open_jobs(self) -> int:
        """Return the number of accepted jobs without a callback."""
        return sum(job.accepted is not None and not job.callbacks for job in self.jobs())

    def count_results(self) -> None:
        """Read all results, and note the outcomes at their jobs."""
        for job in self.jobs():
            job.outcomes.clear()
        for message in committed_records(self.kafka.client_config(), self.kafka.topics.results):
            result = read_result(message.value() or b"")
            if (counted := self.outside.job_of(result.custom_id)) is not None:
                counted.outcomes.append(str(result.outcome))

    @contextmanager
    def _watched_by_prometheus(self) -> Iterator[Prometheus]:
        rules = re.sub(r"\bfor: \d+m", SHORT, RULES.read_text(encoding="utf-8"))
        (self.folder / "rules.yml").write_text(rules, encoding="utf-8")
        jobs = {"worker": "worker", "deliver": "delivery", "gateway": "gateway", "exporter": "exporter"}
        targets = {f"postback-{job}": [self._ports[f"{role}-{n}"] for n in (1, 2)] for role, job in jobs.items()}
        with scraping(self.folder, targets, rule_files=["rules.yml"], **{"global": DELIVERED}) as started:
            yield started

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Start processes again that end by themselves, as an orchestrator does, and note the alerts that fire."""
        thread = threading.Thread(target=self._keep)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _keep(self) -> None:
        while not self._over.wait(0.5):
            with self._lock:
                for name in self.processes.keys() - self.down:
                    if self.processes[name].status() is not None:
                        self.restarts[name] += 1
                        self._launch(name)
            with suppress(requests.RequestException):
                self._note()

    def _note(self) -> None:
        answer = requests.get(f"{self.prometheus.url}/api/v1/alerts", timeout=10).json()
        firing = [one["labels"] for one in answer["data"]["alerts"] if one["state"] == "firing"]
        names = (one["alertname"] + one.get("job", "").replace("postback-", " ") for one in firing)
        self.firing = {name.removeprefix("Postback") for name in names}
        for name in self.firing:
            self.alerts.setdefault(name, time.time())


@contextmanager
def temporary_folder(folder: Path | None) -> Iterator[None]:
    """Let new temporary files be in this folder during the block."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder) if folder else before
    try:
        yield
    finally:
        tempfile.tempdir = before


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a disk of SMALL_BYTES in memory. Needs root."""
    folder.mkdir()
    folder.chmod(0o777)
    folder.parent.chmod(0o711)  # PostgreSQL runs as `nobody`
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES},mode=777", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
