"""Processes, Kafka and the database are killed while work is accepted: nothing is lost, and nothing is doubled.

POSTBACK_TEST_KILLS raises the number of kills for a long run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest
from confluent_kafka import Producer
from sqlalchemy import func, select

from bench.committed import committed_records
from cli.devkit.broker import Broker
from gateway.accept.position import waiting
from gateway.store.meta import value_of
from gateway.store.store import Store, StoreAway
from gateway.store.tables import events
from schemas.codec import write_result
from schemas.outcome import Outcome
from schemas.result import Result
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from tests.integration.gateway.accepting_process import COUNT
from tests.messages import value_of as record_of
from tests.postgres_server import PostgresServer
from tests.product import PARTITIONS, eventually

CLOCK = SystemClock()


@dataclass
class _Process:
    popen: subprocess.Popen[str]
    hearing: threading.Thread
    asked: set[str] = field(default_factory=set)

    def kill(self) -> None:
        """Send SIGKILL, and close the pipes."""
        self.popen.kill()
        self.popen.wait()
        self.hearing.join(10)
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


class Load:
    """Idempotency keys, and processes that accept jobs for them until each key has an answer."""

    def __init__(self, url: str, kafka: KafkaSettings, folder: Path) -> None:
        self._given = json.dumps({"url": url, "kafka": kafka.model_dump(mode="json")})
        self._url, self._kafka, self._folder = url, kafka, folder
        self._processes: list[_Process] = []
        self._lock = threading.Lock()
        self._owed: set[str] = set()
        self._made = 0
        self.answers: dict[str, str] = {}
        self._answered: dict[str, float] = {}
        """The monotonic time at which each key's first answer was heard. All processes of a machine share this time."""
        self.kills = self.stops = 0

    def start(self) -> None:
        """Start one more process."""
        with (self._folder / "log").open("a") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.gateway.accepting_process", self._given],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        process = _Process(popen, threading.Thread(target=lambda: self._hear(process), daemon=True))
        self._processes.append(process)
        process.hearing.start()

    def ask(self, count: int) -> None:
        """Make new keys. Hand all keys that have no answer and that no process holds to the processes in turn."""
        with self._lock:
            new = {f"key{number}" for number in range(self._made, self._made + count)}
            self._made += count
            self._owed |= new
            held = set().union(*(process.asked for process in self._processes)) if self._processes else set()
            for number, key in enumerate(sorted(self._owed - held)):
                process = self._processes[number % len(self._processes)]
                process.asked.add(key)
                with suppress(BrokenPipeError):
                    _write(process.popen.stdin, key)

    def kill_one(self) -> None:
        """Kill a process with SIGKILL, and start another one."""
        process = self._processes.pop(random.randrange(len(self._processes)))
        process.kill()
        self.kills += 1
        self.start()

    def stop_one(self, seconds: float) -> None:
        """Stop a process for some time, and then let it go on."""
        process = self._processes[0]
        process.popen.send_signal(signal.SIGSTOP)
        CLOCK.sleep(seconds)
        process.popen.send_signal(signal.SIGCONT)
        self.stops += 1

    def finish(self, seconds: float) -> None:
        """Wait until every key has an answer and the outbox is empty; then end all processes."""
        eventually(self.is_answered, seconds, lambda: f"{len(self._owed)} keys have no answer: {self.log()}")
        store = Store.open(self._url)
        try:
            eventually(lambda: store.read_now(waiting) == (0, 0), seconds, lambda: f"rows wait: {self.log()}")
        finally:
            store.close()
        self.end()

    def end(self) -> None:
        """Kill all processes."""
        for process in self._processes:
            process.kill()
        self._processes.clear()

    def verify(self) -> None:
        """Fail unless each key has exactly one job on Kafka, the job that the key's answer names, and in its order.

        No job may come after a job of its partition that was asked for when the first one was accepted already.
        """
        found = committed_records(self._kafka.client_config(), self._kafka.topics.requests())
        jobs = [json.loads(record_of(message)) for message in found]
        doubled = {key: times for key, times in Counter(job["key"] for job in jobs).items() if times > 1}
        assert not doubled, f"{len(doubled)} keys have several jobs"
        assert {job["key"]: job["job_id"] for job in jobs} == self.answers
        latest: defaultdict[int | None, float] = defaultdict(float)
        for message, job in zip(found, jobs, strict=True):
            partition = message.partition()
            assert latest[partition] <= self._answered[job["key"]], f"{job['key']} was passed over for a while"
            latest[partition] = max(latest[partition], job["asked"])

    def log(self) -> str:
        """The end of the processes' log."""
        return (self._folder / "log").read_text()[-3000:]

    def is_answered(self) -> bool:
        """Ask again for each key that has neither an answer nor a process; return True if every key has its answer."""
        self.ask(0)
        return not self._owed

    def _hear(self, process: _Process) -> None:
        assert process.popen.stdout is not None
        for line in process.popen.stdout:
            key, _, job_id = line.strip().partition(" ")
            with self._lock:
                process.asked.discard(key)
                if job_id:
                    assert self.answers.setdefault(key, job_id) == job_id
                    self._answered.setdefault(key, CLOCK.monotonic())
                    self._owed.discard(key)


def torment(load: Load, rounds: int, keys: int, disturb: Callable[[int], None] = lambda _: None) -> None:
    """Ask for new keys twice a round, and kill a process in each round; halfway through, stop another for a while."""
    for number in range(rounds):
        load.ask(keys)
        CLOCK.sleep(random.uniform(0.05, 0.8))
        load.ask(keys)
        load.kill_one()
        disturb(number)
        if number == rounds // 2:
            load.stop_one(7.0)  # freezes a process for longer than its transaction's timeout


def counted(url: str) -> tuple[int, int]:
    """Return the results that the views counted, and the number of events."""
    store = Store.open(url)
    try:
        said = store.read_now(lambda connection: value_of(connection, COUNT))
        told = store.read_now(lambda connection: connection.scalar(select(func.count()).select_from(events)))
        return int(said or 0), int(told or 0)
    except StoreAway:
        return 0, 0
    finally:
        store.close()


def _write(stream: IO[str] | None, line: str) -> None:
    assert stream is not None
    stream.write(f"{line}\n")
    stream.flush()


KILLS = int(os.environ.get("POSTBACK_TEST_KILLS", "3"))
RESULTS = 2_000


@pytest.fixture
def own_broker(clean_processes: None) -> Iterator[Broker]:
    with Broker.start() as broker:
        yield broker


@pytest.fixture
def loads(tmp_path: Path, clean_processes: None) -> Iterator[Callable[[str, KafkaSettings], Load]]:
    """Makes a load with two processes; the test's end kills them."""
    made: list[Load] = []

    def make(url: str, kafka: KafkaSettings) -> Load:
        load = Load(url, kafka, tmp_path)
        made.append(load)
        load.start()
        load.start()
        return load

    yield make
    for load in made:
        load.end()


def put_results(kafka: KafkaSettings, numbers: range) -> None:
    """Write results of jobs that the gateway did not accept."""
    producer = Producer(kafka.client_config())
    for number in numbers:
        value = write_result(Result(job_id=f"r{number}", outcome=Outcome.SUCCEEDED, created_at=1))
        producer.produce(kafka.topics.results, value, partition=number % PARTITIONS)
    producer.flush(60)


def test_killed_and_stopped_gateways_lose_and_double_nothing(
    store_url: str, fleet: KafkaSettings, loads: Callable[[str, KafkaSettings], Load], show: Callable[[str], None]
) -> None:
    load = loads(store_url, fleet)
    load.ask(50)
    eventually(load.is_answered, 60, load.log)
    share = RESULTS // KILLS
    torment(load, KILLS, 150, lambda number: put_results(fleet, range(number * share, (number + 1) * share)))
    wanted = (KILLS * share, KILLS * share)
    eventually(lambda: counted(store_url) == wanted, 90, lambda: f"{counted(store_url)}: {load.log()}")
    load.finish(90)
    load.verify()
    assert counted(store_url) == wanted
    show(f"{len(load.answers)} accepted under {load.kills} SIGKILLs and {load.stops} stop, {wanted[0]} results counted")


def test_postgres_that_is_killed_under_load_loses_and_doubles_nothing(
    fleet: KafkaSettings, loads: Callable[[str, KafkaSettings], Load], show: Callable[[str], None]
) -> None:
    with PostgresServer() as server:
        load = loads(server.new_database(), fleet)
        load.ask(50)
        eventually(load.is_answered, 60, load.log)
        for _ in range(2):
            load.ask(300)
            CLOCK.sleep(0.1)
            server.kill()
            load.ask(50)
            server.start()
        load.finish(90)
        load.verify()
        show(f"{len(load.answers)} accepted while PostgreSQL was killed twice")


def test_kafka_that_is_killed_under_load_loses_and_doubles_nothing(
    own_broker: Broker,
    make_fleet: Callable[[str], KafkaSettings],
    loads: Callable[[str, KafkaSettings], Load],
    tmp_path: Path,
    show: Callable[[str], None],
) -> None:
    load = loads(f"sqlite:///{tmp_path / 'store.db'}", make_fleet(own_broker.bootstrap_servers))
    load.ask(50)
    eventually(load.is_answered, 60, load.log)
    load.ask(500)
    CLOCK.sleep(0.2)
    own_broker.kill()
    load.ask(200)
    eventually(load.is_answered, 60, "work is not accepted without Kafka")
    own_broker.restart()
    load.finish(120)
    load.verify()
    show(f"{len(load.answers)} accepted while Kafka was killed")
