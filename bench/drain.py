"""Measures a whole `postback deliver` that starts with a full topic; part of `python -m bench.delivery`.

A whole process has parts that a handler alone lacks: Kafka's client with its thread, and transactions that contain
the attempts and the progress. Kafka and the receiver share the process's cores.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Producer

from bench.callbacks import CLOCK, headers, result, webhook_id
from bench.fleet import Command, Kafka, new_fleet
from bench.receivers import receivers
from bench.result import samples, table, verdict
from schemas.settings import KafkaSettings
from workers.delivery.keyring import Keyring

PARTITIONS = 4
LAST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Drained:
    """The speed and the cost of one run."""

    per_second: float
    """Callbacks a second, from the first callback to the last."""
    cpu_us: float
    """CPU time of the process for each callback, in microseconds."""


MOST_CPU = 2.3
"""Limit for the CPU time of a callback, compared with a bare aiohttp loop that signs and posts the same."""


def compare(used: Kafka, results: int, runs: int, bare_cpu_us: float) -> None:
    """Run `runs` times, after one run that warms Kafka up; print the results and the ratio of CPU times."""
    _run(used, results)
    drained = [_run(used, results) for _ in range(runs)]
    rates = [run.per_second for run in drained]
    samples("postback deliver, callbacks/s", rates)
    cpu = statistics.median(run.cpu_us for run in drained)
    line = (
        "postback deliver",
        f"{statistics.median(rates):,.0f}",
        f"{min(rates):,.0f}-{max(rates):,.0f}",
        f"{cpu:.0f}",
    )
    table(("", "callbacks/s (median)", "range", "CPU µs a callback (median)"), [line])
    verdict("CPU of postback deliver / bare that signs, a callback", cpu / bare_cpu_us, MOST_CPU, at_least=False)


def _run(used: Kafka, results: int) -> Drained:
    kafka = new_fleet(used, PARTITIONS)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        consumers = stack.enter_context(receivers(1, note=True))
        _prefill(kafka, f"http://127.0.0.1:{consumers.ports[0]}/hook", results)
        keyring = Path(folder) / "keyring.json"
        Keyring.create(keyring, CLOCK)
        process = Command(kafka, "deliver", POSTBACK_REPLICA="d0", POSTBACK_KEYRING=str(keyring))
        deliver = stack.enter_context(process)
        before = deliver.cpu_seconds()
        arrived = consumers.first_arrivals([webhook_id(number) for number in range(results)], LAST_SECONDS)
        cpu_seconds = deliver.cpu_seconds() - before
    return Drained(results / (max(arrived.values()) - min(arrived.values())), cpu_seconds / results * 1e6)


def _prefill(kafka: KafkaSettings, url: str, results: int) -> None:
    producer = Producer({**kafka.client_config(), "linger.ms": 20, "compression.type": "lz4"})
    for number in range(results):
        partition = number % kafka.partitions
        producer.produce(kafka.topics.results, result(number), partition=partition, headers=dict(headers(number, url)))
        producer.poll(0)
    if producer.flush(120):
        raise RuntimeError("not every result was taken by the broker")
