"""The product as its users run it: processes of its roles, a verifying receiver, and queries to Kafka.

`tests.fleet_here` runs the same roles in the test's process.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client.parser import text_string_to_metric_families

from bench.committed import committed_records
from cli.devkit.receiver import Behaviour, Keys, Received, Receiver
from cli.operations.topics import configure_groups
from schemas.settings import KafkaSettings
from schemas.topics import JOB_ID
from telemetry.clock import SystemClock
from tests.ecs import log_lines
from tests.messages import headers_of, pairs_of, value_of
from tests.postback_command import POSTBACK, environment_of
from workers.delivery.keyring import Keyring

PARTITIONS = 4
GROUPS = ("inference", "delivery", "expansion", "shadow")
CLOCK = SystemClock()


def eventually(condition: Callable[[], bool], seconds: float, what: Callable[[], str] | str) -> None:
    """Wait until the condition holds, or fail the test with the text `what`.

    A check that takes long, or that failed for long, is repeated seldom: on two cores, its cost would slow the test.
    """
    began = time.monotonic()
    while True:
        asked = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        if now > began + seconds:
            pytest.fail(f"after {seconds:.0f} s: {what() if callable(what) else what}")
        time.sleep(min(0.5, max(0.05, 2 * (now - asked), (now - began) / 50)))


class Callbacks:
    """A verifying receiver on its own thread, so that it answers while a test waits."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._receiver: Receiver | None = None
        self._reserved: socket.socket | None = None
        self._deaf: socket.socket | None = None
        self.port = 0
        self._scheme = "http"
        self.received: list[Received] = []
        self.tenants: Sequence[str] = ("default",)
        """The tenants whose events verify."""
        self.before_answer: Callable[[Received], None] = lambda received: None
        """Called before each answer, on the receiver's thread."""

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/hook?token=secret"

    @property
    def events(self) -> dict[str, list[Received]]:
        """Verified callbacks by job."""
        found: dict[str, list[Received]] = {}
        for one in list(self.received):
            if one.verified:
                found.setdefault(one.event["data"]["id"], []).append(one)
        return found

    def up(self, behaviour: Behaviour | None = None, tls: ssl.SSLContext | None = None) -> None:
        """Listen on the same port as before; over https if `tls` is given."""
        self.down()
        self._scheme = "https" if tls else "http"
        self._receiver = Receiver(self._keys, self._take, port=self.port, behaviour=behaviour or Behaviour(), tls=tls)
        asyncio.run_coroutine_threadsafe(self._receiver.start(), self._loop).result(10)
        self.port = self._receiver.port
        self._release()

    def down(self) -> None:
        """Refuse connections, and keep the port: otherwise another process of this machine may listen there."""
        if self._receiver is not None:
            asyncio.run_coroutine_threadsafe(self._receiver.stop(), self._loop).result(10)
            self._receiver = None
            self._reserved = self._bound()
        if self._deaf is not None:
            self._deaf.close()
            self._deaf = None

    def hang(self) -> None:
        """Accept connections on the same port and never answer: the kernel accepts them, and no code reads them."""
        self.down()
        self._deaf = self._bound()
        self._deaf.listen(128)

    def end(self) -> None:
        self.down()
        self._release()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _bound(self) -> socket.socket:
        """A socket bound to the port, even if another socket that does not listen is bound to it."""
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", self.port))
        return bound

    def _release(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    def _keys(self) -> Keys:
        now = CLOCK.time()
        secrets = [secret for tenant in self.tenants for secret in self._keyring.secrets(tenant, now)]
        return Keys(secrets, [key for tenant in self.tenants for key in self._keyring.public_keys(tenant, now)])

    def _take(self, received: Received) -> None:
        self.received.append(received)
        self.before_answer(received)


class Role(ABC):
    """A running role of the product. Its log lines are read from a file."""

    log: Path

    @abstractmethod
    def stop(self) -> None:
        """Ask the role to drain and end, as SIGTERM does."""

    def terminate(self) -> int:
        """Stop the role, and return its exit status after the drain."""
        self.stop()
        status = self.ended(60)
        assert status is not None, f"the role did not drain: {self.said()[-2000:]}"
        return status

    @abstractmethod
    def ended(self, seconds: float = 0) -> int | None:
        """The exit status of a role that ended by itself within these seconds; None if it still runs."""

    @abstractmethod
    def end(self) -> None:
        """End the role with its test, by the shortest way. A role that has ended is left alone."""

    @property
    def port(self) -> int:
        """The port of the role's metrics, from its log line."""
        eventually(lambda: bool(self._announced()), 30, lambda: f"no port is announced: {self.said()[-2000:]}")
        return int(self._announced()[-1])

    def said(self) -> str:
        return self.log.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """The role's log lines; fails if one of them is not ECS."""
        return log_lines(self.said())

    def ready(self) -> tuple[bool, list[str]]:
        """True if the role is ready, and the reasons if it is not."""
        status, body = self._get("/readyz")
        answer = json.loads(body)
        assert answer["ready"] == (status == 200)
        return answer["ready"], answer["reasons"]

    def alive(self) -> bool:
        return self._get("/healthz")[0] == 200

    def page(self, path: str) -> tuple[int, dict[str, Any]]:
        """The status and the JSON of one of the role's own pages."""
        status, body = self._get(path)
        return status, json.loads(body)

    def metrics(self) -> dict[str, float]:
        """Samples by name, or by `name{value}` and `name{value,value}` if they have labels."""
        samples = {}
        for family in text_string_to_metric_families(self._get("/metrics")[1]):
            for sample in family.samples:
                labels = ",".join(sample.labels.values())
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return samples

    def _announced(self) -> list[str]:
        return re.findall(r"metrics and health on port (\d+)", self.said())

    def _get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@dataclass
class RoleProcess(Role):
    """A running `postback worker`, `deliver`, `gateway` or `exporter`."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    end = kill

    def stop(self) -> None:
        self.process.terminate()

    def ended(self, seconds: float = 0) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None


R_co = TypeVar("R_co", bound=Role, covariant=True)


@dataclass
class Fleet(ABC, Generic[R_co]):
    """One fleet: roles that a subclass starts, a verifying receiver, and queries to Kafka about the fleet."""

    kafka: KafkaSettings
    folder: Path
    keyring: Keyring = field(init=False)
    callbacks: Callbacks = field(init=False)
    roles: list[R_co] = field(init=False, default_factory=list)
    answers: bool = field(init=False, default=False)
    """True if a worker was started."""

    def __post_init__(self) -> None:
        self.keyring = Keyring.create(self.folder / "keyring.json", CLOCK)
        self.callbacks = Callbacks(self.keyring)
        configure_groups(self.kafka, [f"{self.kafka.topic_prefix}{group}" for group in GROUPS])

    # -- roles -----------------------------------------------------------------------------------------------------

    def worker(self, replica: str, *arguments: str, **settings: str) -> R_co:
        """Start `postback worker`, with the echo engine unless arguments are given."""
        return self._start("worker", replica, arguments or ("--engine", "echo"), settings)

    def deliver(self, replica: str, **settings: str) -> R_co:
        return self._start("deliver", replica, (), settings)

    def gateway(self, replica: str, *arguments: str, **settings: str) -> R_co:
        """Start `postback gateway`; see also tests/integration/gateway/gateway_process.py."""
        return self._start("gateway", replica, arguments, settings)

    def exporter(self, replica: str, **settings: str) -> R_co:
        return self._start("exporter", replica, (), settings)

    def _start(self, role: str, replica: str, arguments: tuple[str, ...], settings: Mapping[str, str]) -> R_co:
        environment = {
            "POSTBACK_ENV": "development",
            "POSTBACK_REPLICA": replica,
            "POSTBACK_KEYRING": str(self.folder / "keyring.json"),
            "POSTBACK_EGRESS__ALLOW_CALLBACKS": "127.0.0.1/32",
            **settings,
        }
        log = self.folder / f"{role}-{replica}-{len(self.roles)}.log"
        started = self._started(role, arguments, environment_of(self.kafka, **environment), log)
        self.roles.append(started)
        self.answers |= role == "worker"
        return started

    @abstractmethod
    def _started(self, role: str, arguments: tuple[str, ...], environment: dict[str, str], log: Path) -> R_co:
        """Start a role with this environment, and return it."""

    @abstractmethod
    def end(self) -> None:
        """End the roles and the receiver."""

    # -- input and output ------------------------------------------------------------------------------------------

    def submit(self, jobs: Iterable[Mapping[str, Any]], topic: str | None = None) -> None:
        """Write jobs as JSON, spread over the partitions."""
        self.put([json.dumps(job).encode() for job in jobs], topic=topic)

    def put(
        self,
        values: Iterable[bytes],
        headers: Iterable[tuple[str, bytes]] = (),
        topic: str | None = None,
        timestamp_ms: int = 0,
        **config: object,
    ) -> None:
        """Write records unchanged, spread over the partitions. `timestamp_ms` 0 means now."""
        refused: list[str] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                refused.append(f"{message.topic()}-{message.partition()}: {error}")

        producer = Producer({**self.kafka.client_config(), "linger.ms": 20, "message.max.bytes": 8_000_000, **config})
        for count, value in enumerate(values):
            producer.produce(
                topic or self.kafka.topics.requests(),
                value,
                partition=count % PARTITIONS,
                headers=list(headers),
                timestamp=timestamp_ms,
                on_delivery=delivered,
            )
            producer.poll(0)
        assert producer.flush(60) == 0
        assert refused == []

    def read(self, topic: str) -> list[Message]:
        """Every record that a read_committed consumer can see now."""
        return committed_records(self.kafka.client_config(), topic)

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(value_of(message)) for message in self.read(self.kafka.topics.results)]

    def dead_letters(self) -> list[dict[str, str]]:
        """The headers of each dead letter."""
        letters = self.read(self.kafka.topics.dead_letters)
        return [{name: (value or b"").decode("latin-1") for name, value in pairs_of(letter)} for letter in letters]

    def attempts(self) -> list[dict[str, Any]]:
        """The records of attempts, one for each POST."""
        return [json.loads(value_of(message)) for message in self.read(self.kafka.topics.attempts)]

    def outcomes(self) -> dict[str, str]:
        """Outcomes by job; fails if a job has two results."""
        results = self.results()
        outcomes = {result["job_id"]: result["outcome"] for result in results}
        assert len(results) == len(outcomes), "a job has two results"
        return outcomes

    def wait_for_results(self, jobs: int, seconds: float) -> None:
        eventually(lambda: len(self.results()) >= jobs, seconds, f"there are fewer than {jobs} results")

    def wait_for_callbacks(self, jobs: int, seconds: float) -> None:
        have = self.callbacks.events
        eventually(lambda: len(self.callbacks.events) >= jobs, seconds, lambda: f"{len(have)} of {jobs} were called")

    def lag(self, group: str, topics: Iterable[str]) -> dict[str, int]:
        """Number of records at or above the group's committed offsets, of each partition that has any."""
        consumer = Consumer({**self.kafka.client_config(), "group.id": "lag"})
        ends = {}
        for topic in topics:
            for number in consumer.list_topics(topic, timeout=20).topics[topic].partitions:
                ends[topic, number] = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=20)[1]
        consumer.close()
        asked = ConsumerGroupTopicPartitions(
            f"{self.kafka.topic_prefix}{group}", [TopicPartition(*place) for place in ends]
        )
        admin = AdminClient(self.kafka.client_config())
        committed = next(iter(admin.list_consumer_group_offsets([asked]).values())).result(20).topic_partitions
        behind = {f"{p.topic}-{p.partition}": ends[p.topic, p.partition] - max(0, p.offset) for p in committed}
        return {place: records for place, records in behind.items() if records}

    def wait_until_nothing_is_left(self) -> None:
        """Wait until inference has no lag; if the test has a receiver, until delivery has none either.

        Without a worker, the lanes keep the markers of delivery's first sweep, which are lag.
        """
        topics = self.kafka.topics
        if self.answers:
            self._wait_for_no_lag("inference", [topics.requests(), topics.requests(bulk=True)])
        if self.callbacks.port:
            self._wait_for_no_lag("delivery", [topics.results, *topics.tiers.values()])

    def _wait_for_no_lag(self, group: str, topics: list[str]) -> None:
        eventually(
            lambda: not self.lag(group, topics),
            60,
            lambda: f"the lag of {group} is {self.lag(group, topics)}, not 0\n{self.last_lines()}",
        )

    def last_lines(self) -> str:
        """The last log lines of each role, for the message of a failed test."""
        return "\n".join(line for role in self.roles for line in role.said().splitlines()[-20:])

    # -- whole-state assertions ------------------------------------------------------------------------------------

    def assert_each_is_answered_once_and_called_back(self, jobs: Iterable[str]) -> None:
        """Assert one result and at least one verified callback for each job; repeated callbacks are the same event."""
        wanted = set(jobs)
        assert set(self.outcomes()) == wanted
        events = self.callbacks.events
        assert set(events) == wanted
        for repeats in events.values():
            assert len({(one.webhook_id, one.body) for one in repeats}) == 1
        assert [one.problem for one in self.callbacks.received if not one.verified] == []
        ids = {headers_of(message)[JOB_ID].decode() for message in self.read(self.kafka.topics.results)}
        assert ids == wanted
        assert len({repeats[0].webhook_id for repeats in events.values()}) == len(wanted)


@dataclass
class Product(Fleet[RoleProcess]):
    """A fleet of real processes, for tests of signals, kills, exit statuses, memory and the environment.

    All other tests take a `FleetHere`: the start of a process costs one to three seconds of processor time.
    """

    through: tuple[str, ...] = ()
    """A command that is put before each process's own command line and starts it."""

    def _started(self, role: str, arguments: tuple[str, ...], environment: dict[str, str], log: Path) -> RoleProcess:
        with log.open("wb") as output:
            command: list[str | Path] = [*self.through, POSTBACK, role, *arguments]
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        return RoleProcess(process, log)

    def end(self) -> None:
        for role in self.roles:
            role.process.kill()
        for role in self.roles:
            role.process.wait()
        self.callbacks.end()


@contextmanager
def running(kafka: KafkaSettings, folder: Path) -> Iterator[Product]:
    """A fleet whose processes end with the block."""
    started = Product(kafka, folder)
    try:
        yield started
    finally:
        started.end()
