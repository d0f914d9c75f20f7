"""Callbacks of healthy endpoints while one of ten hangs and one refuses; part of `python -m bench.delivery`.

Each run is a real `postback deliver` with topics of its own. Results for ten endpoints in turn are put on its topic on
a schedule that waits for nothing, and the time of each callback counts from when its result was due. Only callbacks of
the same eight endpoints count: all ten are well, or one of the two that do not count hangs, or the other refuses too.
What the machine does makes two runs of one side differ by a fifth; it takes many rounds to show a tenth. A run during
which a hypervisor took much of the CPU for others is done again, whichever side it is. Before all of them Kafka gets
more results a second: its JVM compiles what runs often, and at the rates that are measured here that would take it a
dozen runs, each quicker than the one before it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Producer

from bench.callbacks import CLOCK, headers, result, webhook_id
from bench.fleet import Command, Kafka, new_fleet, wait_for
from bench.paired import ratio
from bench.receivers import Receivers, receivers, refusing_port
from bench.table import table
from schemas.settings import KafkaSettings
from workers.delivery.keyring import Keyring

HEALTHY, ENDPOINTS = 8, 10
PARTITIONS = 4
LAST_SECONDS = 60.0
WARM_UP_PER_SECOND = 1_500.0
"""How many results come while Kafka is warmed up, for half the time of a run."""
STOLEN = 0.01
"""Of the machine's CPU time: what others may have had of it during a run that is not done again."""
MOVED = 1.1
"""How much longer the healthy ones may take beside sick ones."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent in each run."""

    per_second: float
    """Results for all ten endpoints together."""
    seconds: float
    warm_up_seconds: float

    @property
    def first(self) -> int:
        """The first result that counts."""
        return round(self.per_second * self.warm_up_seconds)

    @property
    def total(self) -> int:
        """How many results there are."""
        return self.first + round(self.per_second * self.seconds)


class Side(StrEnum):
    """What the two endpoints that do not count are."""

    WELL = "all ten are well"
    HUNG = "one hangs"
    HUNG_AND_REFUSING = "one hangs, one refuses"


Took = list[float]
"""Milliseconds that the callbacks of the healthy endpoints took, in one run."""

QUANTILES = {"p50": 49, "p99": 98}


def compare(kafka: Kafka, load: Load, rounds: int, tries: int) -> None:
    """Run the sides in turn, after runs that warm Kafka up, and print what came out.

    `tries`: how often at the most each run is done because the machine was not ours.
    """
    _run(kafka, Load(WARM_UP_PER_SECOND, load.seconds / 2, 0.0), Side.HUNG_AND_REFUSING)
    _run(kafka, load, Side.WELL)
    runs: dict[Side, list[Took]] = {side: [] for side in Side}
    for number in range(rounds):
        # In one order and then in the other: what else the machine does changes slowly.
        for side in Side if number % 2 == 0 else reversed(Side):
            runs[side].append(_undisturbed(kafka, load, side, tries))
    lines = [_line(side, runs[side]) for side in Side]
    table(("of the eight others", "p50 ms (median)", "in each run", "p99 ms (median)", "in each run"), lines)
    for side in (Side.HUNG, Side.HUNG_AND_REFUSING):
        for name in QUANTILES:
            pairs = zip(_all(name, runs[side]), _all(name, runs[Side.WELL]), strict=True)
            moved = ratio([sick / well for sick, well in pairs])
            print(f"{name} where {side} / where {Side.WELL}: {moved}, target ≤ {MOVED}: {moved.kept(MOVED)}")


def _line(name: str, runs: Sequence[Took]) -> tuple[str, ...]:
    cells = [(f"{statistics.median(_all(which, runs)):.1f}", _each(which, runs)) for which in QUANTILES]
    return name, *(text for pair in cells for text in pair)


def _each(which: str, runs: Sequence[Took]) -> str:
    return ", ".join(f"{quantile:.1f}" for quantile in _all(which, runs))


def _all(which: str, runs: Sequence[Took]) -> list[float]:
    return [_quantile(which, run) for run in runs]


def _quantile(which: str, run: Took) -> float:
    return statistics.quantiles(run, n=100, method="inclusive")[QUANTILES[which]]


def _undisturbed(kafka: Kafka, load: Load, side: Side, tries: int) -> Took:
    """A run during which the machine was ours; of several during which it was not, the one in which it was most."""
    tried: list[tuple[float, Took]] = []
    while len(tried) < tries and (not tried or tried[-1][0] > STOLEN):
        before = psutil.cpu_times()
        took = _run(kafka, load, side)
        tried.append((_stolen(before, psutil.cpu_times()), took))
    stolen, took = min(tried)
    p50, p99 = (_quantile(which, took) for which in QUANTILES)
    counted = f"{len(tried)} run(s), {stolen:.1%} of the CPU was taken by others in the one that counts"
    print(f"{side}: p50 {p50:.1f} ms, p99 {p99:.1f} ms; {counted}", flush=True)
    return took


def _stolen(before: Any, after: Any) -> float:
    """The share of the CPU time between two `psutil.cpu_times()` that a hypervisor gave to others; 0 where not said."""
    return float((getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)) / (sum(after) - sum(before)))


def _run(used: Kafka, load: Load, side: Side) -> Took:
    kafka = new_fleet(used, PARTITIONS)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        consumers = stack.enter_context(receivers(ENDPOINTS, hung=1, note=True))
        refusing = stack.enter_context(refusing_port())
        *well, eleventh = consumers.ports
        ports = {
            Side.WELL: well,
            Side.HUNG: [*well[:-1], eleventh],
            Side.HUNG_AND_REFUSING: [*well[:HEALTHY], eleventh, refusing],
        }[side]
        keyring = Path(folder) / "keyring.json"
        Keyring.create(keyring, CLOCK)
        process = Command(kafka, "deliver", POSTBACK_REPLICA="d0", POSTBACK_KEYRING=str(keyring))
        deliver = stack.enter_context(process)
        wait_for(deliver.ready, 60)
        due = _produce(kafka, ports, load)
        return _took(_arrivals(consumers, load), due, load)


def _produce(kafka: KafkaSettings, ports: Sequence[int], load: Load) -> list[float]:
    """Put results on `model_results` on an open schedule; monotonic seconds at which each was due."""
    producer = Producer({**kafka.client_config(), "linger.ms": 0})
    start, due = time.monotonic() + 0.1, []
    for number in range(load.total):
        due.append(start + number / load.per_second)
        time.sleep(max(0.0, due[-1] - time.monotonic()))
        url = f"http://127.0.0.1:{ports[number % ENDPOINTS]}/hook"
        partition = number % kafka.partitions
        producer.produce(kafka.topics.results, result(number), partition=partition, headers=dict(headers(number, url)))
        producer.poll(0)
    producer.flush(30)
    return due


def _arrivals(consumers: Receivers, load: Load) -> dict[str, float]:
    """When the callback of each healthy endpoint's result came; waits until all have come."""
    wanted = [webhook_id(number) for number in range(load.total) if _counts(number)]
    return consumers.first_arrivals(wanted, LAST_SECONDS)


def _counts(number: int) -> bool:
    return number % ENDPOINTS < HEALTHY


def _took(arrived: dict[str, float], due: Sequence[float], load: Load) -> Took:
    counted = (number for number in range(load.first, load.total) if _counts(number))
    return [(arrived[webhook_id(number)] - due[number]) * 1000 for number in counted]
