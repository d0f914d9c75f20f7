"""Measures the latency of a tenant's ten jobs beside another tenant's flood: `python -m bench.fairness`.

A real worker with the echo engine answers like a GPU: a job takes half to one and a half times `--latency` seconds, and
PLACES jobs run at once. The flood and the ten jobs are on the same partitions. The ten jobs come right behind the
flood, and again while the flood waits. Both times are compared with those of the same jobs in a fleet without a flood.
A job's time counts from its submission until Kafka has its result. The bench does not wait for the end of the flood.
The flood has 10,000 jobs, or as many as `--flood` says.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterable, Sequence

from confluent_kafka import Producer

from bench.committed import committed_records
from bench.fleet import Command, Kafka, assert_exactly_once, broker, new_fleet, sleep_of, wait_for
from bench.result import parsed, samples, table, title, verdict
from schemas.settings import KafkaSettings

TARGET = 3.0
PARTITIONS = 4
JOBS = 10
PLACES = 64
DEFERRED = "postback_deferred_total"
STILL_SECONDS = 2.0
WAIT_SECONDS = 300.0


def main() -> None:
    """Measure a tenant alone and beside the flood, and print the times."""
    options = _options()
    title(f"{JOBS} jobs of one tenant beside {options.flood:,} of another, {PLACES} at once for {options.latency:g} s")
    with broker(options.bootstrap_servers) as used:
        alone = _alone(used, options)
        behind, beside = _flooded(used, options)
    rows = [(name, *_row(took)) for name, took in _named(alone, behind, beside)]
    for name, took in _named(alone, behind, beside):
        samples(f"{name}, s", took)
    table(("the tenant's jobs", "jobs", "p50 s", "p99 s"), rows)
    print("each of the tenant's jobs has exactly one result")
    verdict("p99 right behind the flood / alone", _p99(behind) / _p99(alone), TARGET, at_least=False)
    verdict("p99 while the flood waits / alone", _p99(beside) / _p99(alone), TARGET, at_least=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flood", type=int, default=10_000, help="number of jobs in the flood")
    parser.add_argument("--latency", type=float, default=3.0, help="mean seconds that the engine takes for a job")
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often to send the ten jobs alone, and beside a flood"
    )
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parsed(parser)


def _alone(used: Kafka, options: argparse.Namespace) -> list[float]:
    kafka = new_fleet(used, PARTITIONS)
    with _worker(kafka) as worker:
        _ten(kafka, "warm-up", options.latency)
        took = [each for number in range(options.rounds) for each in _ten(kafka, f"alone-{number}", options.latency)]
        worker.kill()
    return took


def _flooded(used: Kafka, options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Return the seconds of the jobs right behind the flood, and of those that came while it waited."""
    kafka = new_fleet(used, PARTITIONS)
    with _worker(kafka) as worker:
        _ten(kafka, "warm-up", options.latency)
        _send(kafka, "flood", "flood", options.flood, options.latency)
        behind = _ten(kafka, "behind", options.latency)
        wait_for(lambda: _is_still(worker), WAIT_SECONDS)
        beside = [each for number in range(options.rounds) for each in _ten(kafka, f"beside-{number}", options.latency)]
        worker.kill()  # an orderly end would take long, since it waits for jobs of the flood
    return behind, beside


def _worker(kafka: KafkaSettings) -> Command:
    places = str(PLACES)
    return Command(
        kafka, "worker", "--engine", "echo", POSTBACK_REPLICA="w0", POSTBACK_ENGINE__ECHO__MAX_CONCURRENCY=places
    )


def _ten(kafka: KafkaSettings, name: str, latency: float) -> list[float]:
    """Send ten jobs of the tenant, and return the seconds until each has its result."""
    return _times(kafka, _send(kafka, "few", name, JOBS, latency))


def _send(kafka: KafkaSettings, tenant: str, name: str, count: int, latency: float) -> dict[str, float]:
    """Put a tenant's jobs on all partitions in turn; return the Unix time at which each was sent."""
    producer = Producer({**kafka.client_config(), "linger.ms": 5, "queue.buffering.max.messages": 1_000_000})
    sent = {}
    for number in range(count):
        job_id = f"{name}-{number}"
        job = json.dumps({"job_id": job_id, "prompt": _prompt(number, latency)}).encode()
        sent[job_id], header = time.time(), ("tenant", tenant.encode())
        producer.produce(kafka.topics.requests(), job, headers=[header], partition=number % PARTITIONS)
    if producer.flush(120):
        raise RuntimeError("not every job was taken by the broker")
    return sent


def _prompt(number: int, latency: float) -> str:
    """Return a job's question.

    The job's number alone sets the time to its answer, so the ten jobs take the same times in every round.
    """
    case = f"Where is case {number} of the cases that the court of this city has seen lately?"
    return f"{sleep_of(number, latency)} {case}"


def _times(kafka: KafkaSettings, sent: dict[str, float]) -> list[float]:
    """Wait for the results of all sent jobs; return the seconds from each job's submission to its result."""
    found: dict[str, float] = {}

    def all_there() -> bool:
        messages = committed_records(kafka.client_config(), kafka.topics.results)
        results = [((message.key() or b"").decode(), message.timestamp()[1] / 1000) for message in messages]
        mine = [(job_id, at) for job_id, at in results if job_id in sent]
        found.update(mine)
        if len(mine) >= len(sent):
            assert_exactly_once((job_id for job_id, _ in mine), len(sent))
        return len(mine) == len(sent)

    wait_for(all_there, WAIT_SECONDS, 0.5)
    return [found[job_id] - at for job_id, at in sent.items()]


def _is_still(worker: Command) -> bool:
    """True if no job was deferred for a while: the worker has read the flood to its end."""
    before = worker.sample()[DEFERRED]
    time.sleep(STILL_SECONDS)
    return worker.sample()[DEFERRED] == before


def _named(*took: list[float]) -> Iterable[tuple[str, list[float]]]:
    return zip(("alone", "right behind the flood", "while the flood waits"), took, strict=True)


def _row(took: Sequence[float]) -> tuple[str, str, str]:
    return str(len(took)), f"{statistics.median(took):.2f}", f"{_p99(took):.2f}"


def _p99(took: Sequence[float]) -> float:
    return sorted(took)[math.ceil(0.99 * len(took)) - 1]


if __name__ == "__main__":
    main()
