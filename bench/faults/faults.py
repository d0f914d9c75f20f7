"""The faults, each a context manager that breaks a fleet for its block, and mends it at the end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Literal

import psutil
import requests
from confluent_kafka.admin import AdminClient

from bench.drawn_jobs import DrawnJobs
from bench.faults.outside import Mode
from bench.faults.rig import Rig
from bench.fleet import wait_for
from bench.hostile_jobs import LONGEST_SECONDS, POOL, ids_of_results, put
from cli.operations.certificates import LEAF_DAYS, renew
from cli.operations.topics import create_topics

Fault = Callable[[Rig], AbstractContextManager[object]]
HEAVY_BYTES = 200_000
"""Size of a job's prompt and answer while memory is short."""
BURST, BURST_BYTES = 300, 500_000
FROZEN_SECONDS, THAWED_SECONDS = 0.18, 0.02
"""A slow broker runs for a tenth of the time."""
LAG_SECONDS = 15.0


def between(begin: Callable[[Rig], object], end: Callable[[Rig], object] = lambda rig: None) -> Fault:
    """Return a fault of two steps."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        begin(rig)
        yield
        end(rig)

    return fault


def killed(name: str) -> Fault:
    """Kill a process by SIGKILL; it stays away."""
    return between(lambda rig: rig.kill(name), lambda rig: rig.start(name))


def frozen(name: str) -> Fault:
    """Freeze a process by SIGSTOP."""
    return between(lambda rig: rig.signal(name, signal.SIGSTOP), lambda rig: rig.signal(name, signal.SIGCONT))


def clock_moved(name: str, seconds: int) -> Fault:
    """Move the clock of a process while it runs."""
    return between(lambda rig: rig.set_clock(name, seconds), lambda rig: rig.set_clock(name, 0))


def ill(server: Literal["model", "endpoint"], mode: Mode) -> Fault:
    """Make the model server (`model`) or the receiver (`endpoint`) ill."""
    return between(lambda rig: rig.outside.set(server, mode), lambda rig: rig.outside.set(server, "well"))


def brokers_killed(*indexes: int) -> Fault:
    """Kill brokers by SIGKILL, and start them again at the end."""

    def each(step: Callable[[int], None]) -> None:
        # All at once, because a single one of three does not serve.
        with ThreadPoolExecutor() as pool:
            list(pool.map(step, indexes))

    return between(lambda rig: each(rig.broker.kill), lambda rig: each(rig.broker.restart))


store_away = between(lambda rig: rig.postgres.kill(), lambda rig: rig.postgres.start())
redis_away = between(lambda rig: rig.redis.kill(), lambda rig: rig.redis.start())
"""Redis loses its data."""
names_away = between(lambda rig: rig.outside.answer_names(False), lambda rig: rig.outside.answer_names(True))
s3_hung = between(lambda rig: _s3(rig).suspend(), lambda rig: _s3(rig).resume())
partitions_added = between(
    lambda rig: create_topics(
        rig.kafka.model_copy(update={"partitions": 2 * rig.kafka.partitions}), raise_partitions=True
    )
)
poison = between(lambda rig: rig.post({"prompt": "[[crash-worker]]", "custom_id": "poison"}))
"""A job that ends each worker that answers it, as the kernel does when memory runs out."""
certificate_expiring = between(
    # It ends within a minute.
    lambda rig: renew(rig.authority, "door", datetime.now(UTC) - timedelta(days=LEAF_DAYS) + timedelta(minutes=6)),
    lambda rig: renew(rig.authority, "door", datetime.now(UTC)),
)


def _s3(rig: Rig) -> psutil.Process:
    [server] = [one for one in psutil.Process().children(recursive=True) if "versitygw" in one.name()]
    return server


@contextmanager
def topic_deleted(rig: Rig) -> Iterator[None]:
    """Delete the jobs' topic; at the end it is made anew."""
    admin, name = AdminClient(rig.kafka.client_config()), rig.kafka.topics.requests()
    admin.delete_topics([name])[name].result(20)
    yield
    create_topics(rig.kafka)


@contextmanager
def redis_lying(rig: Rig) -> Iterator[None]:
    """Let a server that answers each command with `+OK` stand in Redis's place."""
    rig.redis.kill()
    with rig.outside.lying(rig.redis.port):
        yield
    rig.redis.start()


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
    """Refuse a process any further memory while large jobs come. Raises RuntimeError if it did not need any."""

    @contextmanager
    def fault(rig: Rig) -> Iterator[None]:
        process = rig.processes[name].process
        most = process.memory_info().data  # bytes of writable private mappings, as the limit counts them
        process.rlimit(psutil.RLIMIT_DATA, (most, psutil.RLIM_INFINITY))  # a soft limit can be raised again
        rig.outside.weight = HEAVY_BYTES
        refused = _burst(rig)
        yield
        rig.outside.weight = 0
        with suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_DATA, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        if not refused and not rig.restarts[name]:
            raise RuntimeError(f"{name} needed no further memory")

    return fault


def _burst(rig: Rig) -> int:
    """Post BURST jobs of BURST_BYTES to the first gateway, 64 at once; return the number of those that it refused."""

    def accepted(_: int) -> bool:
        try:
            rig.post({"prompt": "x" * BURST_BYTES})
        except (RuntimeError, requests.RequestException):
            return False
        return True

    with ThreadPoolExecutor(64) as pool:
        return BURST - sum(pool.map(accepted, range(BURST)))


@contextmanager
def disk_full(rig: Rig) -> Iterator[None]:
    """Fill the small disk; at the end it is empty again, and servers that ended meanwhile start again."""
    for size in (1024 * 1024, 512):
        with (rig.disk / "fill").open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(size)):
                pass
    yield
    (rig.disk / "fill").unlink()
    if rig.needs == "small disk of a broker":
        rig.broker.restart(2)
    if rig.needs == "small disk of the store":
        rig.postgres.kill()
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
def store_taken_over(rig: Rig) -> Iterator[None]:
    """Kill PostgreSQL, and promote its synchronous standby."""
    with ExitStack() as stack:
        standby = stack.enter_context(rig.postgres.standby())
        time.sleep(LAG_SECONDS)
        rig.postgres.kill()
        standby.take_over(rig.postgres.port)
        rig.closing.enter_context(stack.pop_all())
    yield


def hostile(records: int) -> Fault:
    """Put jobs with one fault each on Kafka, and wait until each has exactly one result."""

    def send(rig: Rig) -> None:
        drawn = DrawnJobs(f"http://127.0.0.1:{rig.outside.endpoint.port}", POOL, seed=1)
        expected = put(rig.kafka, drawn.broken(records))
        wait_for(lambda: expected <= ids_of_results(rig.kafka).keys(), LONGEST_SECONDS, 10.0)
        found = ids_of_results(rig.kafka)
        if doubled := [name for name in expected if found[name] > 1]:
            raise RuntimeError(f"{len(doubled)} hostile records have two results")

    return between(send)
