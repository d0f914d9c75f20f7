"""The faults, each a context manager that breaks a fleet for its block, and mends it at the end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta

import psutil
from confluent_kafka.admin import AdminClient

from bench.drawn_jobs import DrawnJobs
from bench.faults.outside import Mode
from bench.faults.rig import Rig
from bench.fleet import wait_for
from bench.hostile_jobs import LONGEST_SECONDS, POOL, ensure_one_each, ids_of_results, put
from cli.operations.certificates import LEAF_DAYS, renew
from cli.operations.topics import create_topics

Fault = Callable[[Rig], AbstractContextManager[object]]
HEAVY_BYTES = 200_000
"""Size of a job's prompt and answer while memory is short."""
SPARE_BYTES = 8 * 1024 * 1024
FROZEN_SECONDS, THAWED_SECONDS = 0.18, 0.02
"""A slow broker runs for a tenth of the time."""
LAG_SECONDS = 15.0


def killed(name: str) -> Fault:
    """Kill a process by SIGKILL; it stays away."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        rig.kill(name)
        yield
        rig.start(name)

    return fault


def frozen(name: str) -> Fault:
    """Freeze a process by SIGSTOP."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        rig.signal(name, signal.SIGSTOP)
        yield
        rig.signal(name, signal.SIGCONT)

    return fault


def ill(server: str, mode: Mode) -> Fault:
    """Make the model server (`model`) or the receiver (`endpoint`) ill."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        rig.outside.set(getattr(rig.outside, server), mode)
        yield
        rig.outside.set(getattr(rig.outside, server), "well")

    return fault


def brokers_killed(*indexes: int) -> Fault:
    """Kill brokers by SIGKILL, and start them again at the end."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        for index in indexes:
            rig.broker.kill(index)
        yield
        # All at once, because a single one of three does not serve.
        threads = [threading.Thread(target=rig.broker.restart, args=(index,)) for index in indexes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return fault


@contextmanager
def slow_broker(rig: Rig) -> Iterator[None]:
    """Let the first broker run for a tenth of the time only."""
    over, pid = threading.Event(), rig.broker.pids[0]

    def slow() -> None:
        while not over.wait(THAWED_SECONDS):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(FROZEN_SECONDS)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=slow)
    thread.start()
    yield
    over.set()
    thread.join()


def short_of_memory(name: str) -> Fault:
    """Let a process have no more address space than it has, while jobs of HEAVY_BYTES come."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        process = rig.processes[name].process
        most = process.memory_info().vms + SPARE_BYTES
        process.rlimit(
            psutil.RLIMIT_AS, (most, psutil.RLIM_INFINITY)
        )  # the soft limit only: this one can be raised again
        rig.outside.weight = HEAVY_BYTES
        yield
        rig.outside.weight = 0
        with suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_AS, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))

    return fault


@contextmanager
def disk_full(rig: Rig) -> Iterator[None]:
    """Fill the small disk; at the end it is empty again, and servers that ended meanwhile start again."""
    fill = rig.disk / "fill"
    with fill.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1024 * 1024))
    with fill.open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
    yield
    fill.unlink()
    if rig.needs.small_disk == "broker":
        rig.broker.restart(2)
    if rig.needs.small_disk == "store":
        rig.postgres.kill()
        rig.postgres.start()


def clock_moved(seconds: int) -> Fault:
    """Move the clock of the cell's process while it runs."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        rig.set_clock(seconds)
        yield
        rig.set_clock(0)

    return fault


@contextmanager
def store_away(rig: Rig) -> Iterator[None]:
    """Kill PostgreSQL; at the end it starts again with its data."""
    rig.postgres.kill()
    yield
    rig.postgres.start()


@contextmanager
def store_failed_over(rig: Rig) -> Iterator[None]:
    """Kill PostgreSQL, and start a standby that lacks the commits of the last LAG_SECONDS."""
    with ExitStack() as stack:
        rig.postgres.kill()
        standby = stack.enter_context(rig.postgres.copied())
        rig.postgres.start()
        time.sleep(LAG_SECONDS)
        rig.postgres.kill()
        standby.start()
        rig.closing.enter_context(stack.pop_all())
    yield


@contextmanager
def redis_away(rig: Rig) -> Iterator[None]:
    """Kill Redis, which loses its data."""
    rig.redis.kill()
    yield
    rig.redis.start()


@contextmanager
def redis_lying(rig: Rig) -> Iterator[None]:
    """Let a server that answers each command with `+OK` stand in Redis's place."""
    rig.redis.kill()
    lying = rig.outside.lie(rig.redis.port)
    yield
    lying()
    rig.redis.start()


@contextmanager
def files_frozen(rig: Rig) -> Iterator[None]:
    """Freeze the S3 server."""
    [server] = [one for one in psutil.Process().children(recursive=True) if "versitygw" in one.name()]
    server.suspend()
    yield
    server.resume()


@contextmanager
def names_away(rig: Rig) -> Iterator[None]:
    """Let the name server answer no question."""
    rig.outside.names_answered(False)
    yield
    rig.outside.names_answered(True)


@contextmanager
def certificate_expiring(rig: Rig) -> Iterator[None]:
    """Give the gateways a certificate that ends within a minute; at the end it is renewed."""
    now = datetime.now(UTC)
    renew(rig.authority, "door", now - timedelta(days=LEAF_DAYS) + timedelta(minutes=6))
    yield
    renew(rig.authority, "door", datetime.now(UTC))


@contextmanager
def topic_deleted(rig: Rig) -> Iterator[None]:
    """Delete the jobs' topic; at the end it is made anew."""
    name = rig.kafka.topics.requests()
    AdminClient(rig.kafka.client_config()).delete_topics([name])[name].result(20)
    yield
    create_topics(rig.kafka)


@contextmanager
def partitions_added(rig: Rig) -> Iterator[None]:
    """Double the number of partitions of all topics."""
    create_topics(rig.kafka.model_copy(update={"partitions": 2 * rig.kafka.partitions}), raise_partitions=True)
    yield


@contextmanager
def poison(rig: Rig) -> Iterator[None]:
    """Post a job that ends each worker that answers it, as the kernel does when memory runs out."""
    rig.post({"prompt": "[[crash-worker]]", "custom_id": "poison"})
    yield


def hostile(records: int) -> Fault:
    """Put jobs with one fault each on Kafka, and wait until each has exactly one result."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        drawn = DrawnJobs(f"http://127.0.0.1:{rig.outside.endpoint.port}", POOL, seed=1)
        expected = put(rig.kafka, drawn.broken(records))
        wait_for(lambda: expected <= ids_of_results(rig.kafka).keys(), LONGEST_SECONDS, 10.0)
        found = ids_of_results(rig.kafka)
        ensure_one_each(expected, Counter({name: found[name] for name in expected}))
        yield

    return fault
