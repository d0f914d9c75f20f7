"""Jobs a second by the number of replicas, and the effect of a new or killed replica: `python -m bench.fleet`.

Real `postback worker --engine echo` processes share one Kafka. The engine sleeps like a GPU: PLACES jobs run at once,
and a job takes half to one and a half times `--latency` seconds. Sleeping engines let many replicas fit on few cores.
*Linear* is the rate per replica in the smallest fleet of the same run, times the number of replicas.

Then a replica joins a fleet under load, and a replica is killed with SIGKILL. A partition's move is *needed* if its
owner is gone, or if the newcomer would otherwise have less than its share. Each job of each fleet has exactly one
result.
"""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, islice

from confluent_kafka.admin import AdminClient, MemberAssignment

from bench.assignors import Place, Step, compared
from bench.committed import committed_records
from bench.end_to_end import SETTLED, answered_jobs, wait_until_finished
from bench.fleet import (
    START_SECONDS,
    Command,
    Kafka,
    assert_exactly_once,
    broker,
    new_fleet,
    prefill,
    shared_evenly,
    sleep_of,
    wait_for,
)
from bench.result import parsed, table, title, verdict
from schemas.groups import INFERENCE_GROUP
from schemas.settings import KafkaSettings

TARGET = 0.95
PARTITIONS = 24
PLACES = 32
SPARE = 2.5
"""A backlog lasts this much longer than the measurement, as a multiple of the mean time of a job."""
OVERLOAD = 1.2
"""Rate of the jobs sent to the changing fleet, as a multiple of the rate at which the fleet answers jobs."""
WAIT_SECONDS = 300.0

Start = Callable[[int], Command]
"""Starts the replica with this number."""


@dataclass(frozen=True, slots=True)
class FleetRate:
    """The steady rate of one fleet."""

    replicas: int
    jobs_per_second: float

    def of_linear(self, first: FleetRate) -> float:
        """Return the rate as a multiple of the rate that a linear growth from the first fleet gives."""
        return self.jobs_per_second / (first.jobs_per_second / first.replicas * self.replicas)


def main() -> None:
    """Measure each number of replicas and the changes of a fleet, and print the results."""
    options = _options()
    title(f"Replicas with {PLACES} places each, jobs of {options.latency:g} s, {PARTITIONS} partitions")
    with broker(options.bootstrap_servers) as used:
        rates = [_rate(used, number, options) for number in options.replicas]
        changes = _changes(used, options)
    rows = [
        (each.replicas, f"{each.jobs_per_second:.1f}", f"{each.of_linear(rates[0]):.3f}", f"{_busy(each, options):.3f}")
        for each in rates
    ]
    table(("replicas", "jobs/s", "of linear", "places busy"), rows)
    table(("change", "partitions moved", "needed"), [(name, step.moved, step.needed) for name, step in changes])
    print("each job has exactly one result for a read_committed reader, in each fleet")
    verdict(f"jobs/s of {rates[-1].replicas} / linear", rates[-1].of_linear(rates[0]), TARGET, at_least=True)
    verdict("moves beyond the needed ones", sum(step.moved - step.needed for _, step in changes), 0, at_least=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8], help="sizes of fleets, ascending")
    parser.add_argument(
        "--changing", type=int, default=4, help="size of the fleet that another replica joins; 0 leaves this part out"
    )
    parser.add_argument("--latency", type=float, default=4.0, help="mean seconds that the engine takes for a job")
    parser.add_argument("--seconds", type=float, default=40.0, help="measured seconds for each fleet")
    parser.add_argument("--warm-up", type=float, default=12.0, help="seconds under load before a measurement begins")
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parsed(parser)


def _busy(measured: FleetRate, options: argparse.Namespace) -> float:
    """Return the mean share of occupied places, by Little's law."""
    busy: float = measured.jobs_per_second * options.latency / (measured.replicas * PLACES)
    return busy


@contextmanager
def _fleet(kafka: KafkaSettings, replicas: int) -> Iterator[tuple[Start, list[Command]]]:
    """Start the replicas and wait until they share the partitions. The replicas are killed at the end."""
    with ExitStack() as stack:

        def start(number: int) -> Command:
            variables = {"POSTBACK_REPLICA": f"w{number}", "POSTBACK_ENGINE__ECHO__MAX_CONCURRENCY": str(PLACES)}
            command = Command(kafka, "worker", "--engine", "echo", **variables)
            stack.push(command)
            # Kill the worker first, because `__exit__` would let the worker finish its jobs.
            stack.callback(command.kill)
            return command

        commands = [start(number) for number in range(replicas)]
        for command in commands:
            command.__enter__()
        wait_for(lambda: shared_evenly(kafka, INFERENCE_GROUP, replicas), START_SECONDS)
        yield start, commands


def _jobs(latency: float) -> Iterator[bytes]:
    """Yield jobs without an end. The jobs' times are spread evenly, and are the same in each fleet."""
    for number in count():
        prompt = f"{sleep_of(number, latency)} Where is it?"
        yield json.dumps({"prompt": prompt, "custom_id": str(number)}).encode()


def _rate(used: Kafka, replicas: int, options: argparse.Namespace) -> FleetRate:
    """Return the rate of a new fleet of this many replicas while it has a backlog."""
    kafka = new_fleet(used, PARTITIONS)
    jobs = int(replicas * PLACES / options.latency * (options.warm_up + options.seconds + SPARE * options.latency))
    with _fleet(kafka, replicas) as (_, commands):
        prefill(kafka, islice(_jobs(options.latency), jobs))
        wait_for(lambda: _all_answer(commands), START_SECONDS)
        time.sleep(options.warm_up)
        begun = time.time()
        time.sleep(options.seconds)
        ended = time.time()
        wait_until_finished(kafka, used, commands, jobs)
    assert_exactly_once(answered_jobs(kafka), jobs)
    results = committed_records(kafka.client_config(), kafka.topics.results)
    counted = sum(begun <= message.timestamp()[1] / 1000 < ended for message in results)
    return FleetRate(replicas, counted / (ended - begun))


def _changes(used: Kafka, options: argparse.Namespace) -> list[tuple[str, Step]]:
    """Return the moves when a replica joins a fleet under load, and when one is killed."""
    if not options.changing:
        return []
    kafka, before = new_fleet(used, PARTITIONS), options.changing
    with _fleet(kafka, before) as (start, commands):
        with _load(kafka, before * PLACES / options.latency, options.latency) as sent:
            wait_for(lambda: _all_answer(commands), START_SECONDS)
            owners = _owners(kafka, before)
            start(before).__enter__()
            joined = _owners(kafka, before + 1)
            commands[0].kill()
            left = _owners(kafka, before)
        wait_for(lambda: len(set(answered_jobs(kafka))) >= sum(sent), WAIT_SECONDS, 1.0)
    assert_exactly_once(answered_jobs(kafka), sum(sent))
    return [
        (f"{before} to {before + 1} replicas", compared(owners, joined, set(joined.values()))),
        (f"{before + 1} to {before}, one killed", compared(joined, left, set(left.values()))),
    ]


def _all_answer(commands: Sequence[Command]) -> bool:
    return all(command.sample()[SETTLED] for command in commands)


@contextmanager
def _load(kafka: KafkaSettings, per_second: float, latency: float) -> Iterator[list[int]]:
    """Until the block ends, send more jobs than the fleet answers. The list gets each second's number of jobs."""
    jobs, ended, sent = _jobs(latency), threading.Event(), list[int]()

    def send() -> None:
        share = int(SPARE * latency * per_second)
        while not ended.wait(1.0 if sent else 0.0):
            sent.append(prefill(kafka, islice(jobs, share)))
            share = math.ceil(OVERLOAD * per_second)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield sent
    finally:
        ended.set()
        sender.join()


def _owners(kafka: KafkaSettings, members: int) -> dict[Place, str]:
    """Wait until this many members have the partitions that Kafka assigned to them; return each partition's owner."""
    admin, group = AdminClient(kafka.client_config()), f"{kafka.topic_prefix}{INFERENCE_GROUP}"
    partitions = PARTITIONS * len(kafka.topics.requests_of(None))

    def owners() -> dict[Place, str] | None:
        found = admin.describe_consumer_groups([group])[group].result(20).members
        owned = {place: each.member_id for each in found for place in _places(each.assignment)}
        is_final = all(_places(each.assignment) == _places(each.target_assignment) for each in found)
        return owned if is_final and len(owned) == partitions and len(set(owned.values())) == members else None

    final: dict[Place, str] = wait_for(owners, WAIT_SECONDS, 0.5)
    return final


def _places(assignment: MemberAssignment | None) -> set[Place]:
    return {(each.topic, each.partition) for each in assignment.topic_partitions} if assignment is not None else set()


if __name__ == "__main__":
    main()
