"""A fleet for measurements: topics on a broker, jobs in them, the real commands, and checks of their results."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient
from prometheus_client.parser import text_string_to_metric_families

from cli.devkit.broker import Broker
from cli.devkit.kafka.cluster import SMALL_JVM
from cli.operations.topics import create_topics
from schemas.settings import KafkaSettings
from telemetry.metrics import Metrics

POSTBACK = Path(sys.executable).with_name("postback")
START_SECONDS = 180.0
_SPREAD = 0.618034
"""The multiples of this number, modulo 1, are spread evenly."""


@dataclass(frozen=True, slots=True)
class Kafka:
    """The Kafka that a measurement uses."""

    servers: str
    pids: tuple[int, ...] = ()
    """The brokers' process ids, if this bench started them."""

    def cpu_seconds(self) -> float:
        """Return the brokers' user and system seconds so far; 0 if this bench did not start them."""
        return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in self.pids)


@contextmanager
def broker(bootstrap_servers: str | None, jvm: Sequence[str] = SMALL_JVM) -> Iterator[Kafka]:
    """Yield the named Kafka, or start one in a JVM with these flags until the bench ends."""
    if bootstrap_servers:
        yield Kafka(bootstrap_servers)
        return
    with Broker.start(jvm=jvm) as own:
        yield Kafka(own.bootstrap_servers, tuple(own.pids))


def value_of(metrics: Metrics, name: str) -> float:
    """Return a metric's value, summed over labels.

    Only this metric is collected: collecting all metrics took a fifth of the measured event loop's time.
    """
    families = metrics.registry.restricted_registry([name]).collect()
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def new_fleet(used: Kafka, partitions: int) -> KafkaSettings:
    """Create a fleet with new topics."""
    kafka = KafkaSettings(
        bootstrap_servers=used.servers, topic_prefix=f"b{uuid.uuid4().hex[:10]}.", partitions=partitions
    )
    create_topics(kafka)
    return kafka


def prefill(kafka: KafkaSettings, values: Iterable[bytes], tenants: int = 0) -> int:
    """Put jobs on `model_requests`, spread evenly over the partitions and `tenants`; return their number."""
    producer = Producer({**kafka.client_config(), "linger.ms": 20, "compression.type": "lz4"})
    count = 0
    for value in values:
        while True:
            try:
                headers: list[tuple[str, str | bytes | None]] = (
                    [("tenant", b"%d" % (count % tenants))] if tenants else []
                )
                partition = count % kafka.partitions
                producer.produce(kafka.topics.requests(), value, partition=partition, headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
        count += 1
    if producer.flush(120):
        raise RuntimeError("not every job was taken by the broker")
    return count


def shared_evenly(kafka: KafkaSettings, group: str, members: int) -> bool:
    """True if the group has `members` members, and the partitions are spread evenly over them."""
    name = f"{kafka.topic_prefix}{group}"
    admin = AdminClient(kafka.client_config())
    try:
        found = admin.describe_consumer_groups([name])[name].result(20)
    except KafkaException:
        return False  # no member has joined yet
    shares = [len(member.assignment.topic_partitions) for member in found.members if member.assignment]
    return len(shares) == members and min(shares) > 0 and max(shares) - min(shares) <= members


def assert_exactly_once(results: Iterable[str], jobs: int) -> None:
    """Raise RuntimeError unless there are `jobs` results, each of another job."""
    counts = Counter(results)
    repeated = sum(1 for count in counts.values() if count > 1)
    if len(counts) != jobs or repeated:
        raise RuntimeError(f"{jobs} jobs have {len(counts)} distinct results, {repeated} of them more than once")


@dataclass(frozen=True, slots=True)
class Sample:
    """A process's metrics and CPU time at one moment."""

    at: float
    """Monotonic seconds before the request for the metrics."""
    values: dict[str, float]
    """Metrics by name, summed over their labels."""
    cpu_seconds: float
    """User and system seconds so far, of the process and its children."""

    def __getitem__(self, metric: str) -> float:
        return self.values.get(metric, 0.0)


class Command:
    """A `postback` process that serves metrics. Its `with` block ends with SIGTERM and waits for the process.

    `through` is a command that is put before the process's own command line and starts it.
    """

    def __init__(self, kafka: KafkaSettings, *arguments: str, through: Sequence[str] = (), **variables: str) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("POSTBACK_")}
        environment = {
            "POSTBACK_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "POSTBACK_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
            "POSTBACK_KAFKA__PARTITIONS": str(kafka.partitions),
            "POSTBACK_ENV": "development",
            "POSTBACK_EGRESS__ALLOW_CALLBACKS": "127.0.0.0/8",
        }
        self._log = tempfile.NamedTemporaryFile("w+", prefix="postback-bench-", suffix=".log")  # noqa: SIM115 - open as long as the process runs
        self._process = subprocess.Popen(
            [*through, POSTBACK, *arguments], env=kept | environment | variables, stdout=self._log, stderr=self._log
        )
        self._watched = psutil.Process(self._process.pid)
        self._port = 0

    def __enter__(self) -> Command:
        self._port = int(wait_for(self._announced, START_SECONDS))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    @property
    def port(self) -> int:
        """The port of metrics and health."""
        return self._port

    @property
    def process(self) -> psutil.Process:
        """The process itself, for signals and limits."""
        return self._watched

    def status(self) -> int | None:
        """Return the exit status, or None if the process runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Send SIGTERM without waiting, so that several processes end at the same time."""
        self._process.terminate()

    def wait(self) -> int:
        """Wait for the process to end, and return its exit status."""
        return self._process.wait(60)

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process is gone."""
        self._process.kill()
        self._process.wait()

    def sample(self) -> Sample:
        """Return the process's metrics and CPU time now. Raises RuntimeError if it has ended."""
        self._ensure_alive()
        at = time.monotonic()
        with urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        values: dict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name] += sample.value
        return Sample(at, dict(values), self.cpu_seconds())

    def ready(self) -> bool:
        """True if the process answers `/readyz` with 200."""
        self._ensure_alive()
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=30) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def cpu_seconds(self) -> float:
        """Return user and system seconds of the process and its children."""
        return sum(sum(process.cpu_times()[:2]) for process in self._family())

    def rss_bytes(self) -> int:
        """Return the resident memory of the process and its children."""
        return sum(process.memory_info().rss for process in self._family())

    def _family(self) -> list[psutil.Process]:
        return [self._watched, *self._watched.children(recursive=True)]

    def _announced(self) -> str | None:
        self._ensure_alive()
        found = re.search(r"metrics and health on port (\d+)", self.output())
        return found[1] if found else None

    def _ensure_alive(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"postback ended with {self._process.returncode}:\n{self.output()[-3000:]}")

    def output(self) -> str:
        """Return everything that the process has printed."""
        return Path(self._log.name).read_text()


def sleep_of(number: int, latency: float) -> str:
    """Return a prompt for job `number`, for which the echo engine takes 0.5 to 1.5 times `latency` seconds.

    The times of successive numbers are spread evenly.
    """
    return f"[[sleep {latency * (0.5 + number * _SPREAD % 1):.3f}]]"


def wait_for(found: Callable[[], Any], seconds: float, look_seconds: float = 0.1) -> Any:
    """Call `found` until its result is true, and return the result. Raises RuntimeError after `seconds`."""
    end = time.monotonic() + seconds
    while not (answer := found()):
        if time.monotonic() > end:
            raise RuntimeError(f"nothing happened for {seconds:.0f} s")
        time.sleep(look_seconds)
    return answer
