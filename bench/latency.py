"""Measures the time from a job's submission to its verified callback: `python -m bench.latency`.

A real worker (engine echo) and a real delivery process call a receiver in this process, which verifies every signature.
Jobs are submitted on an open-loop schedule, which waits for no answer. Each job's time counts from its due time, so
that a stall counts for every job that it delays.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop
from confluent_kafka import Producer

from bench.fleet import Command, broker, new_fleet, wait_for
from bench.result import parsed, samples, table, title, verdict
from cli.devkit.receiver import Keys, Received, Receiver
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from workers.delivery.keyring import Keyring

P50_MS = 60
P99_MS = 250
PARTITIONS = 12
LAST_SECONDS = 30.0
CLOCK = SystemClock()


class Arrivals:
    """The time of arrival of each job's callback. A callback that does not verify ends the bench."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self.at: dict[int, float] = {}
        self.repeated = 0
        self.complete = asyncio.Event()

    def note(self, received: Received) -> None:
        """Note a request to the receiver."""
        if not received.verified:
            raise RuntimeError(f"a callback did not verify: {received.problem}")
        number = int(received.event["data"]["custom_id"])
        self.repeated += number in self.at
        self.at.setdefault(number, received.received_at)
        if len(self.at) == self._jobs:
            self.complete.set()


def main() -> None:
    """Start the fleet, submit, and print the percentiles."""
    options = _options()
    title(f"Submit to verified callback, engine echo, {options.rate:g} jobs/s for {options.seconds:g} s")
    with broker(options.bootstrap_servers) as used, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keyring.json"
        keyring = Keyring.create(path, CLOCK)
        kafka = new_fleet(used, PARTITIONS)
        with (
            Command(kafka, "worker", "--engine", "echo", POSTBACK_REPLICA="w0") as worker,
            Command(kafka, "deliver", POSTBACK_REPLICA="d0", POSTBACK_KEYRING=str(path)) as deliver,
        ):
            wait_for(lambda: worker.ready() and deliver.ready(), 60)
            took_ms, repeated = uvloop.run(_measure(kafka, keyring, options))
    _report(took_ms, repeated)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0, help="jobs a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--warm-up", type=float, default=15.0, help="seconds to leave out at the start, because a fresh JVM is slow"
    )
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parsed(parser)


async def _measure(kafka: KafkaSettings, keyring: Keyring, options: argparse.Namespace) -> tuple[list[float], int]:
    """Return the milliseconds of each job that counts, and the number of repeated callbacks."""
    now = CLOCK.time()
    keys = Keys(keyring.secrets("default", now), keyring.public_keys("default", now))
    jobs = round(options.rate * (options.warm_up + options.seconds))
    arrivals = Arrivals(jobs)
    async with Receiver(lambda: keys, arrivals.note) as receiver:
        due = await asyncio.to_thread(_submit, kafka, receiver.url + "hook", jobs, options.rate)
        try:
            async with asyncio.timeout(LAST_SECONDS):
                await arrivals.complete.wait()
        except TimeoutError:
            raise SystemExit(
                f"{LAST_SECONDS:.0f} s after the last of {jobs} jobs, {jobs - len(arrivals.at)} have no callback: "
                f"the fleet does not keep up with {options.rate:g} jobs/s on this machine. Set a lower --rate"
            ) from None
    counted = range(round(options.rate * options.warm_up), jobs)
    return [(arrivals.at[number] - due[number]) * 1000 for number in counted], arrivals.repeated


def _submit(kafka: KafkaSettings, url: str, jobs: int, rate: float) -> list[float]:
    """Produce jobs on an open-loop schedule; return each job's due time in Unix seconds."""
    producer = Producer({**kafka.client_config(), "linger.ms": 0})
    start, due = time.time() + 0.1, []
    for number in range(jobs):
        due.append(start + number / rate)
        time.sleep(max(0.0, due[-1] - time.time()))
        job = {"prompt": f"Where is case {number}?", "callback_url": url, "custom_id": str(number)}
        producer.produce(kafka.topics.requests(), json.dumps(job).encode(), partition=number % PARTITIONS)
        producer.poll(0)
    producer.flush(30)
    return due


def _report(took_ms: Sequence[float], repeated: int) -> None:
    cuts = statistics.quantiles(took_ms, n=1000, method="inclusive")
    p50, p99 = cuts[499], cuts[989]
    row = (f"{len(took_ms):,}", *(f"{value:.1f}" for value in (p50, cuts[899], p99, cuts[998], max(took_ms))), repeated)
    samples("submit to verified callback, ms", took_ms)
    table(("callbacks", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms", "repeated"), [row])
    print("every callback verified")
    verdict("p50", p50, P50_MS, at_least=False, unit=" ms")
    verdict("p99", p99, P99_MS, at_least=False, unit=" ms")


if __name__ == "__main__":
    main()
