"""Times callbacks of healthy endpoints while one of ten hangs and one refuses: `python -m bench.sick_endpoints`.

Three fleets share one Kafka. Each fleet is a real `postback deliver` with its own topics, and ten endpoints. All
endpoints of the first fleet are well. In the second fleet one endpoint hangs; in the third, one endpoint hangs and
another refuses. Results for the ten endpoints come on an open-loop schedule, to one fleet after the other, for a few
seconds each. A callback's time counts from its result's due time. Only the eight endpoints that are well in every fleet
count.

The turns are short because the machine may be half as fast for half a minute at a time: neighbouring turns then find it
equally fast. A round takes about 30 s, and a record waits for a sick endpoint for one round or four (30 s or two
minutes). So records may return in the turns of their own fleet; the output shows the share of such records. A failing
origin's first wait is 30 s here instead of 5 s, so that its records wait for one round too. Only rounds in which many
records return count. Few return in the first rounds, which do not count. An outage ends after seven minutes, because
records then wait longer, and few return. Work that all fleets cause for the broker and the two cores affects every turn
equally, and does not show.

An outage's rounds share their processes, so each outage gives one ratio, estimated from its rounds. A warm-up outage
comes first and does not count: its higher rate of results lets Kafka's JVM compile frequently used code.
"""

from __future__ import annotations

import argparse
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
from confluent_kafka import Message, Producer

from bench.callbacks import CLOCK, headers, result, webhook_id
from bench.committed import committed_records
from bench.fleet import Command, Kafka, broker, new_fleet, wait_for
from bench.paired import Ratio, ratio
from bench.receivers import Receivers, receivers, refusing_port
from bench.result import estimate, parsed, samples, table, title
from cli.devkit.kafka.cluster import STEADY_JVM
from schemas.settings import KafkaSettings
from schemas.topics import DEFERRED
from workers.delivery.keyring import Keyring

HEALTHY, ENDPOINTS = 8, 10
PARTITIONS = 4
LAST_SECONDS = 60.0
WARM_UP_PER_SECOND = 1_500.0
"""Results a second while Kafka is warmed up."""
WARM_UP_ROUNDS = 2
BEGINNING_ROUNDS = 4
"""Number of first rounds in each outage that do not count: the processes have just started, and few records wait."""
UNSTEADY_SECONDS = 1.0
"""First seconds of each turn, which do not count: the fleet was idle, and its connections are closed."""
MOVED = 1.1
"""Limit for the ratio of healthy endpoints' times with sick endpoints to their times without."""


class Side(StrEnum):
    """State of a fleet's endpoints.

    Only the last two of the ten endpoints differ between fleets, and these two do not count.
    """

    WELL = "all ten are well"
    HUNG = "one hangs"
    HUNG_AND_REFUSING = "one hangs, one refuses"


SICK = (Side.HUNG, Side.HUNG_AND_REFUSING)


@dataclass(frozen=True, slots=True)
class Load:
    """The load of an outage."""

    per_second: float
    """Results a second in a fleet's turn, for its ten endpoints together."""
    turn_seconds: float
    rounds: int
    """Number of rounds; in each round every fleet has a turn."""

    @property
    def per_turn(self) -> int:
        """Number of results in a turn."""
        return round(self.per_second * self.turn_seconds)

    @property
    def turns(self) -> int:
        """Number of turns of all fleets."""
        return len(Side) * self.rounds

    @property
    def total(self) -> int:
        """Number of results for all fleets."""
        return self.per_turn * self.turns

    @property
    def first_turn(self) -> int:
        """Number of the first turn that counts."""
        return len(Side) * BEGINNING_ROUNDS

    def counts(self, number: int) -> bool:
        """True if this result's callback counts, provided that the result's turn counts."""
        return number % self.per_turn >= self.per_second * UNSTEADY_SECONDS and _is_healthy(number)


Took = list[float]
"""Milliseconds of each callback of a healthy endpoint in one turn."""

QUANTILES = {"p50": 49, "p99": 98}


@dataclass(frozen=True, slots=True)
class Turns:
    """The figures of one fleet during an outage."""

    took: list[Took]
    """The callbacks' times in each turn that counts."""
    back: int
    """Number of records that the fleet put back into a tier during the rounds that count."""
    back_in_turn: int
    """Number of these records that the fleet put back in its own turns."""


Outage = dict[Side, Turns]


def main() -> None:
    """Measure, and print the results."""
    options = _options()
    load = Load(options.rate, options.turn, options.rounds)
    # A small JVM's garbage collector stops Kafka for 40 ms every 2.5 s, and these pauses would set the p99 of all
    # sides. STEADY_JVM has a collector that does not stop Kafka, but needs a core. Even one collection a minute would
    # set the p99 of the turn that it falls into, so STEADY_JVM also has enough memory to collect less often.
    with broker(options.bootstrap_servers, STEADY_JVM) as kafka:
        title(
            f"Healthy endpoints beside sick ones: {options.outages} outages of {load.rounds} rounds, three fleets of "
            f"ten endpoints take turns: {load.per_second:g} results/s for {load.turn_seconds:g} s a turn"
        )
        compare(kafka, load, options.outages)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=200.0, help="results a second, for all ten endpoints together")
    parser.add_argument("--turn", type=float, default=10.1, help="seconds of one fleet's turn; a round has three turns")
    parser.add_argument(
        "--rounds",
        type=int,
        default=14,
        help="turns of each fleet in an outage; the first four are left out of the result",
    )
    parser.add_argument("--outages", type=int, default=7, help="number of outages; each takes about seven minutes")
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    options = parsed(parser)
    if options.rounds < BEGINNING_ROUNDS + 2:
        parser.error(f"--rounds: {options.rounds}, of which {BEGINNING_ROUNDS} do not count: give more")
    if options.turn <= UNSTEADY_SECONDS:
        parser.error(f"--turn: {options.turn}, of which {UNSTEADY_SECONDS:g} s do not count: give more")
    return options


def compare(kafka: Kafka, load: Load, count: int) -> None:
    """Run `count` outages, after one that warms Kafka up, and print the results."""
    _outage(kafka, Load(WARM_UP_PER_SECOND, load.turn_seconds, WARM_UP_ROUNDS), list(Side))
    before, outages = psutil.cpu_times(), list[Outage]()
    for number in range(count):
        # The order of the sides alternates, because work left over from one turn affects the next turn.
        outages.append(_outage(kafka, load, list(Side) if number % 2 == 0 else list(reversed(Side))))
        print(f"after outage {number + 1}: p99 where {Side.HUNG} {_moved('p99', outages, Side.HUNG)}", flush=True)
    stolen = _stolen(before, psutil.cpu_times())
    head = ("of the eight others, in a turn", "p50 ms (median)", "half of all", "p99 ms (median)", "half of all")
    table(head, [_line(side, outages) for side in Side])
    print(f"{stolen:.1%} of the CPU was taken by others")
    for side in SICK:
        back, own = sum(fleets[side].back for fleets in outages), sum(fleets[side].back_in_turn for fleets in outages)
        print(
            f"where {side}: {back:,} records were put back into tiers, {own / max(1, back):.0%} in that fleet's turns"
        )
        for which in QUANTILES:
            estimate(f"{which} where {side} / where {Side.WELL}", _moved(which, outages, side), MOVED)
            samples(f"{which} where {side} / where {Side.WELL}, a ratio an outage", _ratios(which, outages, side))


def _line(side: Side, outages: Sequence[Outage]) -> tuple[str, ...]:
    cells: list[str] = []
    for which in QUANTILES:
        low, middle, high = statistics.quantiles(_all(which, outages, side), n=4, method="inclusive")
        cells += f"{middle:.1f}", f"{low:.1f}-{high:.1f}"
    return str(side), *cells


def _moved(which: str, outages: Sequence[Outage], side: Side) -> Ratio:
    return ratio(_ratios(which, outages, side))


def _ratios(which: str, outages: Sequence[Outage], side: Side) -> list[float]:
    return [_ratio_of_rounds(which, fleets[side], fleets[Side.WELL]) for fleets in outages]


def _ratio_of_rounds(which: str, sick: Turns, well: Turns) -> float:
    pairs = zip(_each(which, sick), _each(which, well), strict=True)
    return ratio([beside / alone for beside, alone in pairs]).estimate


def _all(which: str, outages: Sequence[Outage], side: Side) -> list[float]:
    return [quantile for fleets in outages for quantile in _each(which, fleets[side])]


def _each(which: str, turns: Turns) -> list[float]:
    return [statistics.quantiles(took, n=100, method="inclusive")[QUANTILES[which]] for took in turns.took]


def _stolen(before: Any, after: Any) -> float:
    """Return the share of CPU time between two `psutil.cpu_times()` that a hypervisor gave to others; 0 if unknown."""
    return float((getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)) / (sum(after) - sum(before)))


def _outage(used: Kafka, load: Load, order: Sequence[Side]) -> Outage:
    """Run an outage with new fleets; in every round, the fleets have their turns in this order."""
    fleets = [new_fleet(used, PARTITIONS) for _ in order]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        consumers = stack.enter_context(receivers(ENDPOINTS, hung=1, note=True))
        refusing = stack.enter_context(refusing_port())
        *well, hung = consumers.ports
        ports = {
            Side.WELL: well,
            Side.HUNG: [*well[:-1], hung],
            Side.HUNG_AND_REFUSING: [*well[:HEALTHY], hung, refusing],
        }
        keyring = Path(folder) / "keyring.json"
        Keyring.create(keyring, CLOCK)
        own = {
            "POSTBACK_REPLICA": "d0",
            "POSTBACK_KEYRING": str(keyring),
        }
        processes = [stack.enter_context(Command(kafka, "deliver", **own)) for kafka in fleets]
        for process in processes:
            wait_for(process.ready, 60)
        began = CLOCK.time()
        due = _produce(fleets, [ports[side] for side in order], load)
        arrived = _arrivals(consumers, load)
        for process in processes:
            process.stop()
    return {
        side: Turns(_took(arrived, due, load, place), *_put_back(kafka, load, began, place))
        for place, (side, kafka) in enumerate(zip(order, fleets, strict=True))
    }


def _produce(fleets: Sequence[KafkaSettings], ports: Sequence[Sequence[int]], load: Load) -> list[float]:
    """Put results on each fleet's `model_results` in its turns, open-loop; return the monotonic due times."""
    producer = Producer({**fleets[0].client_config(), "linger.ms": 0})
    start, due = time.monotonic(), []
    for number in range(load.total):
        due.append(start + number / load.per_second)
        time.sleep(max(0.0, due[-1] - time.monotonic()))
        place = number // load.per_turn % len(fleets)
        url = f"http://127.0.0.1:{ports[place][number % ENDPOINTS]}/hook"
        topic, partition = fleets[place].topics.results, number % PARTITIONS
        producer.produce(topic, result(number), partition=partition, headers=dict(headers(number, url)))
        producer.poll(0)
    producer.flush(30)
    return due


def _arrivals(consumers: Receivers, load: Load) -> dict[str, float]:
    """Wait for all callbacks of healthy endpoints, and return the arrival of each."""
    wanted = [webhook_id(number) for number in range(load.total) if _is_healthy(number)]
    return consumers.first_arrivals(wanted, LAST_SECONDS)


def _is_healthy(number: int) -> bool:
    return number % ENDPOINTS < HEALTHY


def _took(arrived: dict[str, float], due: Sequence[float], load: Load, place: int) -> list[Took]:
    """Return the callbacks' times in each turn that counts, for the fleet at this place in a round."""
    turns = range(load.first_turn + place, load.turns, len(Side))
    numbers = (range(turn * load.per_turn, (turn + 1) * load.per_turn) for turn in turns)
    return [[(arrived[webhook_id(n)] - due[n]) * 1000 for n in turn if load.counts(n)] for turn in numbers]


def _put_back(kafka: KafkaSettings, load: Load, began: float, place: int) -> tuple[int, int]:
    """Count the records put into a tier again in the rounds that count: all of them, and those in the fleet's turns."""
    connection, tiers = kafka.client_config(), kafka.topics.tiers.values()
    written = (record for tier in tiers for record in committed_records(connection, tier) if _was_back(record))
    turns = [int((record.timestamp()[1] / 1000 - began) // load.turn_seconds) for record in written]
    counted = [turn for turn in turns if load.first_turn <= turn < load.turns]
    return len(counted), sum(turn % len(Side) == place for turn in counted)


def _was_back(record: Message) -> bool:
    return int(dict(record.headers() or ()).get(DEFERRED) or b"0") > 1


if __name__ == "__main__":
    main()
