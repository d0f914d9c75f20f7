"""Compares accepting jobs over TLS with an empty handler in the same server, and times answers until they are readable.

The store is SQLite with full durability. The sides take turns on the same cores as the client and Kafka, and the empty
handler's turn begins once Kafka has all jobs.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import psutil
import uvloop

from bench.fleet import START_SECONDS, Command, broker, new_fleet, wait_for
from bench.gateway.load import LoadConnection, Make, rate, request
from bench.gateway.running import PARTITIONS, Sizes, gateway_command, new_certificate, new_key, url_of
from bench.result import figure, table, title, verdict

GOAL = 0.4
POLL_SECONDS = 0.005
_JOB = json.dumps({"model_id": "echo", "prompt": "Describe the case on this page. ".ljust(300, "x")}).encode()
_BETWEEN_SECONDS = 0.03


def main(servers: str | None, sizes: Sizes) -> None:
    """Measure both sides in turns, then the time to a readable answer; print tables."""
    title(f"Accepting jobs over TLS, {sizes.connections} connections, one gateway process with all roles")
    with broker(servers) as used, TemporaryDirectory() as name:
        folder, kafka = Path(name), new_fleet(used, PARTITIONS)
        certificate = new_certificate(folder / "certificates")
        tls = ssl.create_default_context(cafile=str(certificate.with_name("ca.pem")))
        with gateway_command(kafka, folder, certificate) as gateway, _empty(certificate) as empty:
            wait_for(gateway.ready, START_SECONDS)
            key = new_key(folder)
            door = Side(int(url_of(gateway).rsplit(":", 1)[1]), tls, gateway, job_requests(key))
            bare = Side(empty[0], tls, empty[1], lambda: _request("none", "none"))
            for _ in range(sizes.slices + 1):
                bare.measure(sizes)
                door.measure(sizes)
                wait_for(lambda: _is_relayed(gateway), START_SECONDS)
            with Command(kafka, "worker", "--engine", "echo") as worker:
                wait_for(worker.ready, START_SECONDS)
                seconds = uvloop.run(_readable(door, key, sizes.readable_jobs))
    _print(bare, door, sorted(seconds))


def _print(bare: Side, door: Side, seconds: list[float]) -> None:
    rows = [
        (name, f"{side.rate:,.0f}", f"{min(side.rates):,.0f} to {max(side.rates):,.0f}", f"{side.cpu * 1e6:.0f}")
        for name, side in (("empty handler", bare), ("POST /v1/jobs", door))
    ]
    table(("side", "requests/s, median", "range", "µs of CPU a request"), rows)
    verdict("accepted jobs/s of the empty handler's", door.rate / bare.rate, GOAL, at_least=True)
    p50, p99 = (1000 * seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.99))
    figure(f"accept to a readable answer, {len(seconds)} jobs one by one", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms")


class Measurable(Protocol):
    """Processes with a CPU time."""

    def cpu_seconds(self) -> float:
        """Return user and system seconds so far."""
        ...


class Side:
    """A server under load, which answers with this status."""

    def __init__(
        self, port: int, tls: ssl.SSLContext, process: Measurable | psutil.Process, make: Make, status: int = 202
    ) -> None:
        self.port = port
        self.tls = tls
        self._process = process
        self._make = make
        self._status = status
        self.rates: list[float] = []
        self._costs: list[float] = []
        self._warm = False

    @property
    def rate(self) -> float:
        """Requests per second, the median of all slices."""
        return statistics.median(self.rates)

    @property
    def cpu(self) -> float:
        """Seconds of CPU a request, the median of all slices."""
        return statistics.median(self._costs)

    def measure(self, sizes: Sizes) -> None:
        """Measure one slice; the first slice only warms up."""
        before, seconds = self._spent(), sizes.slice_seconds
        found = uvloop.run(rate(self.port, self.tls, self._make, self._status, sizes.connections, seconds))
        if self._warm:
            self.rates.append(found)
            self._costs.append((self._spent() - before) / (found * seconds))
        self._warm = True

    def _spent(self) -> float:
        if isinstance(self._process, psutil.Process):
            return sum(self._process.cpu_times()[:2])
        return self._process.cpu_seconds()


def _request(key: str, name: str) -> bytes:
    return request("POST", "/v1/jobs", key, _JOB, idempotency_key=name)


def job_requests(key: str) -> Make:
    """Return a maker of requests. Like OpenAI's SDKs, it gives each request an `Idempotency-Key` of its own."""
    numbers = itertools.count()
    return lambda: _request(key, f"bench-{next(numbers)}")


def _is_relayed(gateway: Command) -> bool:
    """Wait until the gauge is renewed, as it is each second. Return True if Kafka has all accepted jobs."""
    time.sleep(1.2)
    return gateway.sample()["postback_outbox_records"] == 0


async def _readable(door: Side, key: str, jobs: int) -> list[float]:
    """Return for each job the seconds from acceptance until the answer is read. The answer is polled every 5 ms."""
    connection, found = await LoadConnection.open(door.port, door.tls), []
    for number in range(jobs):
        job = json.loads((await connection.ask(request("POST", "/v1/jobs", key, _JOB))).body)["id"]
        accepted = time.monotonic()
        while json.loads((await connection.ask(request("GET", f"/v1/jobs/{job}", key))).body)["status"] == "queued":
            if time.monotonic() - accepted > START_SECONDS:
                raise RuntimeError(f"job {number} has no answer: {job}")
            await asyncio.sleep(POLL_SECONDS)
        found.append(time.monotonic() - accepted)
        await asyncio.sleep(_BETWEEN_SECONDS)
    connection.close()
    return found


@contextmanager
def _empty(certificate: Path) -> Iterator[tuple[int, psutil.Process]]:
    """The port and the process of the empty handler's server."""
    command = [sys.executable, "-m", "bench.gateway.empty_door", str(certificate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline()), psutil.Process(process.pid)
        process.terminate()
