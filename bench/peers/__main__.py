"""Gives other job systems and Postback the same work, and measures them in the same way: `python -m bench.peers`.

A job is a prompt with a callback URL; the system echoes it, signs the answer and POSTs it. A peer's file in `systems`
has its documented settings. Its packages are installed into `build/peers`. Each peer runs one process a core, and is
asked for: jobs a second with its CPU time, times at a rate, memory at rest, and jobs lost and doubled by SIGKILLs.
The best figure of a column is in bold. `bench.peers.doors` has the systems that accept requests by HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from bench.fleet import Kafka, broker, new_fleet, prefill, wait_for
from bench.peers import NONE, installed, with_best
from bench.receivers import Receivers, receivers
from bench.result import figure, parsed, samples, table, title, verdict
from schemas.codec import Origin
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from tests.redis_server import RedisServer
from workers.delivery.keyring import Keyring
from workers.kafka.topics import topic_ids

SYSTEMS = Path(__file__).with_name("systems")
PARTITIONS = 12
FIRST_JOBS = 20
REST_SECONDS = 5.0
ARRIVE_SECONDS = 180.0
LATE_SECONDS = 20.0
"""Wait for second callbacks of jobs that a peer gives out again after a kill."""
STILL_SECONDS = 30.0
"""Jobs are lost if no callback has come for so long; each peer's jobs come again sooner."""
CORES = os.cpu_count() or 1
POSTBACK = Path(sys.executable).with_name("postback")


@dataclass(frozen=True, slots=True)
class Peer:
    """One system: its packages, the command of a worker, and the commands that its jobs come from."""

    name: str
    packages: tuple[str, ...]
    file: str
    worker: tuple[str, ...]
    """The command in the folder of the peer's programs."""
    workers: int = 1
    """Number of such commands for one process a core."""


PEERS = (
    Peer("own loop", ("confluent-kafka==2.16.1", "httpx==0.29.0"), "own_loop.py", ("python", "own_loop.py"), CORES),
    Peer(
        "Celery",
        ("celery[redis]==5.7.0", "httpx==0.29.0"),
        "celery_redis.py",
        ("celery", "-A", "celery_redis", "worker", "--concurrency", str(CORES), "--loglevel", "WARNING"),
    ),
    Peer(
        "Dramatiq",
        ("dramatiq[redis]==2.2.1", "httpx==0.29.0"),
        "dramatiq_redis.py",
        ("dramatiq", "dramatiq_redis", "--processes", str(CORES)),
    ),
    Peer(
        "faststream",
        ("faststream[confluent,cli]==0.7.8", "httpx==0.29.0"),
        "faststream_kafka.py",
        ("faststream", "run", "faststream_kafka:app", "--workers", str(CORES)),
    ),
    Peer("arq", ("arq==0.28.0", "httpx==0.29.0"), "arq_redis.py", ("arq", "arq_redis.WorkerSettings"), CORES),
)

WITHOUT = (
    ("vllm run-batch, AsyncLLM", "they call nobody back; Engine compares their jobs/s"),
    ("vllm serve", "it answers while the caller waits; Time to the first token compares it"),
    ("LiteLLM", "it keeps no jobs, and answers while the caller waits; Doors compares it"),
    ("Ray Serve", "its asynchronous inference is a Celery worker in each replica: see Celery"),
    ("Svix", "it answers no jobs, it only delivers webhooks; its server is in no registry of packages"),
)
"""Systems without this work, and the reason."""
BEST = (None, 1, -1, -1, -1, -1, -1, -1)
"""Which figure of a column is the best, see `with_best`."""


def _due_of_peer(webhook_id: str) -> float:
    return float(webhook_id.partition("-")[2])


@dataclass
class System:
    """A peer or Postback at work, in process groups that can be killed."""

    name: str
    commands: Sequence[Sequence[str]]
    submit: Callable[[int, float], None]
    """Puts a number of jobs, at a rate a second; 0 means at once."""
    environment: Mapping[str, str]
    log: Path
    due_of: Callable[[str], float] = _due_of_peer
    """Returns a job's due time in monotonic seconds by its `webhook-id`."""
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start all workers."""
        with self.log.open("ab") as log:
            self.running = [
                subprocess.Popen(
                    command, cwd=SYSTEMS, env=self.environment, stdout=log, stderr=log, start_new_session=True
                )
                for command in self.commands
            ]

    def kill(self) -> None:
        """Send SIGKILL to all processes of all workers."""
        for process in self.running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def family(self) -> list[psutil.Process]:
        """Return the processes of the workers. Raises RuntimeError if a worker has ended."""
        for process in self.running:
            if process.poll() is not None:
                raise RuntimeError(f"{self.name} ended: {self.log.read_text()[-2000:]}")
        roots = [psutil.Process(process.pid) for process in self.running]
        return [each for root in roots for each in (root, *root.children(recursive=True))]

    def cpu_seconds(self) -> float:
        """Return user and system seconds of the workers so far."""
        return sum(sum(each.cpu_times()[:2]) for each in self.family())

    def idle_mb(self) -> float:
        """Return the proportional memory of the workers, in which shared pages count once."""
        return sum(each.memory_full_info().pss for each in self.family()) / 1e6


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one system."""

    name: str
    jobs_per_second: float
    cpu_us: float
    idle_mb: float
    times_ms: list[float]
    """From a job's due time to its callback."""
    lost: int
    doubled: int

    def row(self) -> tuple[str, ...]:
        """Return the row of the table."""
        cuts = statistics.quantiles(self.times_ms, n=100, method="inclusive")
        times = f"{cuts[49]:.1f}", f"{cuts[98]:.1f}"
        figures = f"{self.jobs_per_second:,.0f}", f"{self.cpu_us:,.0f}", *times, f"{self.idle_mb:.0f}"
        return self.name, *figures, str(self.lost), str(self.doubled)


def main() -> None:
    """Measure each system, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--rate", type=float, default=200.0, help="jobs a second while times are measured")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long times are measured")
    parser.add_argument("--kills", type=int, default=12, help="SIGKILLs of all workers while jobs are under way")
    parser.add_argument("--killed", type=int, default=4_000, help="number of these jobs")
    parser.add_argument("--only", nargs="+", choices=["Postback", *(peer.name for peer in PEERS)])
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    options = parsed(parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no worker is left behind
    title(
        f"{options.jobs:,} jobs to signed callbacks, one process a core; "
        f"{options.killed:,} jobs under {options.kills} SIGKILLs"
    )
    with broker(options.bootstrap_servers) as kafka:
        chosen = [peer for peer in PEERS if options.only is None or peer.name in options.only]
        done = [_measure(kafka, peer, options) for peer in chosen]
        if options.only is None or "Postback" in options.only:
            done.append(_measure(kafka, None, options))
    head = ("system", "jobs/s", "CPU µs a job", "p50 ms", "p99 ms", "idle MB", "lost", "doubled")
    table(head, with_best([each.row() for each in done], BEST) + [[name, *[NONE] * 7] for name, _ in WITHOUT])
    table((NONE, "reason"), WITHOUT)
    for each in done:
        samples(f"{each.name}, ms", each.times_ms)
        samples(f"{each.name}, jobs/s", [each.jobs_per_second])
    ours = [each for each in done if each.name == "Postback"]
    if ours and len(done) > 1:
        best = max(each.jobs_per_second for each in done if each not in ours)
        verdict("Postback's jobs/s / the fastest peer's", ours[0].jobs_per_second / best, 1.0, at_least=True)
        verdict("jobs that Postback lost", ours[0].lost, 0, at_least=False)
        figure("jobs that Postback called back again, with the same webhook-id", str(ours[0].doubled))


def _measure(kafka: Kafka, peer: Peer | None, options: argparse.Namespace) -> Measured:
    """Measure one peer, or Postback."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        consumers = stack.enter_context(receivers(1, note=True))
        url = f"http://127.0.0.1:{consumers.ports[0]}/hook"
        system = stack.enter_context(_peer(kafka, peer, folder, url)) if peer else _postback(kafka, folder, url)
        stack.callback(system.kill)
        system.start()
        system.submit(FIRST_JOBS, 0.0)
        _all_arrivals(consumers, FIRST_JOBS)  # shows that the workers are ready, too
        time.sleep(REST_SECONDS)
        idle, cpu = system.idle_mb(), system.cpu_seconds()
        system.submit(options.jobs, 0.0)
        ends = [at for _, at in _all_arrivals(consumers, options.jobs)]
        cpu_us = (system.cpu_seconds() - cpu) / options.jobs * 1e6
        system.submit(round(options.rate * options.seconds), options.rate)
        timed = _all_arrivals(consumers, round(options.rate * options.seconds))
        times = [(at - system.due_of(name)) * 1000 for name, at in timed]
        lost, doubled = _killed(system, consumers, options.killed, options.kills)
    return Measured(system.name, options.jobs / (max(ends) - min(ends)), cpu_us, idle, times, lost, doubled)


def _killed(system: System, consumers: Receivers, jobs: int, kills: int) -> tuple[int, int]:
    """Kill all workers `kills` times while jobs are under way; return the jobs without a callback and with several."""
    system.submit(jobs, 0.0)
    counts: Counter[str] = Counter()
    for number in range(kills):
        _until(consumers, counts, (number + 1) * jobs // (kills + 1))
        system.kill()
        system.start()
    _until(consumers, counts, jobs)
    time.sleep(LATE_SECONDS)
    counts.update(name for name, _ in consumers.arrivals())
    return jobs - len(counts), sum(count > 1 for count in counts.values())


def _until(consumers: Receivers, counts: Counter[str], jobs: int) -> None:
    """Count arrivals until `jobs` jobs have one, or none has come for STILL_SECONDS."""
    moved = time.monotonic()
    while len(counts) < jobs and time.monotonic() - moved < STILL_SECONDS:
        before = len(counts)
        counts.update(name for name, _ in consumers.arrivals())
        if len(counts) > before:
            moved = time.monotonic()
        time.sleep(0.02)


def _all_arrivals(consumers: Receivers, jobs: int) -> list[tuple[str, float]]:
    """Wait for `jobs` callbacks. Raises RuntimeError if they do not come."""
    found: list[tuple[str, float]] = []

    def came() -> bool:
        found.extend(consumers.arrivals())
        return len(found) >= jobs

    wait_for(came, ARRIVE_SECONDS, 0.02)
    return found


def _postback(kafka: Kafka, folder: Path, url: str) -> System:
    """Return Postback: workers that deliver, on a fleet of their own."""
    fleet = new_fleet(kafka, PARTITIONS)
    Keyring.create(folder / "keyring.json", SystemClock())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POSTBACK_")} | {
        "POSTBACK_KAFKA__BOOTSTRAP_SERVERS": fleet.bootstrap_servers,
        "POSTBACK_KAFKA__TOPIC_PREFIX": fleet.topic_prefix,
        "POSTBACK_KAFKA__PARTITIONS": str(PARTITIONS),
        "POSTBACK_ENV": "development",
        "POSTBACK_EGRESS__ALLOW_CALLBACKS": "127.0.0.0/8",
        "POSTBACK_KEYRING": str(folder / "keyring.json"),
    }
    worker = (str(POSTBACK), "worker", "--engine", "echo", "--with-delivery")
    commands = [("env", f"POSTBACK_REPLICA=w{number}", *worker) for number in range(CORES)]

    due: dict[str, float] = {}

    def submit(jobs: int, rate: float) -> None:
        values = (json.dumps({"prompt": f"Where is case {n}?", "callback_url": url}).encode() for n in range(jobs))
        if rate:
            due.update(_submitted(fleet, values, rate))
        else:
            prefill(fleet, values)

    return System("Postback", commands, submit, environment, folder / "log", due.__getitem__)


def _submitted(fleet: KafkaSettings, values: Iterable[bytes], rate: float) -> dict[str, float]:
    """Put jobs on an open-loop schedule; return the due times in monotonic seconds by the jobs' `webhook-id`."""
    topic_id = asyncio.run(topic_ids(fleet, [fleet.topics.requests()]))[fleet.topics.requests()]
    producer, start, due = Producer({**fleet.client_config(), "linger.ms": 0}), time.monotonic(), dict[str, float]()
    for number, value in enumerate(values):
        at = start + number / rate

        def note(_: object, record: Message, at: float = at) -> None:
            origin = Origin(topic_id, int(record.partition() or 0), int(record.offset() or 0))
            due[origin.webhook_id(record.value())] = at

        time.sleep(max(0.0, at - time.monotonic()))
        producer.produce(fleet.topics.requests(), value, partition=number % PARTITIONS, on_delivery=note)
        producer.poll(0)
    if producer.flush(30):
        raise RuntimeError("not every job was taken by the broker")
    return due


@contextmanager
def _peer(kafka: Kafka, peer: Peer, folder: Path, url: str) -> Iterator[System]:
    """Yield a peer with a Redis and a topic of its own."""
    programs = installed(Path(peer.file).stem, peer.packages)
    topic = f"peer{uuid.uuid4().hex[:10]}"
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(20)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(SYSTEMS),
        "CALLBACK_URL": url,
        "KAFKA_SERVERS": kafka.servers,
        "TOPIC": topic,
    }
    commands = [(str(programs / peer.worker[0]), *peer.worker[1:])] * peer.workers

    def submit(jobs: int, rate: float) -> None:
        command = (str(programs / "python"), peer.file, str(jobs), str(rate))
        subprocess.run(command, cwd=SYSTEMS, env=environment, check=True)

    with RedisServer(folder) as own:
        environment["REDIS_URL"] = own.url
        yield System(peer.name, commands, submit, environment, folder / "log")


if __name__ == "__main__":
    main()
