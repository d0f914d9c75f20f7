"""Measures jobs a second from `model_requests` to `model_results`, with echo: `python -m bench.end_to_end`.

Real `postback worker --engine echo` processes share the partitions evenly; then all jobs come at once. The clock starts
with the first commit that is seen. The clock stops with the commit after which a read_committed reader finds exactly
one result of every job. Workers, Kafka and the producer share this machine's cores.

The same jobs then go through the blocking loop of `bench.stage`, which does no more than to read and copy them: its CPU
time for a job is the least that this client needs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from bench.committed import committed_records
from bench.fleet import (
    START_SECONDS,
    Command,
    Kafka,
    Sample,
    assert_exactly_once,
    broker,
    new_fleet,
    prefill,
    shared_evenly,
    wait_for,
)
from bench.result import parsed, samples, table, title, verdict
from bench.stage import Task, blocking_loop, in_its_own_process, with_results
from schemas.codec import read_result
from schemas.settings import KafkaSettings

GOAL = 10_000
CPU_GOAL = 3.5
"""The workers' CPU time for a job, as a multiple of the blocking loop's."""
PARTITIONS = 12
SETTLED = "postback_settled_records_total"
DEFERRED = "postback_deferred_total"
LOOK_SECONDS = 0.1
STILL_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One run, from the first commit that was seen to the commit with the last result."""

    jobs_per_second: float
    cpu_us_per_job: float
    """CPU time of the workers for each job, in microseconds."""
    broker_us_per_job: float
    settles: float
    """Transactions a second."""


def main() -> None:
    """Measure with each number of workers, and print the results."""
    options = _options()
    title(f"model_requests to model_results, engine echo, {options.jobs:,} jobs of {PARTITIONS} partitions")
    rows, best, least = [], 0.0, math.inf
    with broker(options.bootstrap_servers) as used:
        for workers in options.workers:
            for _ in range(options.runs):
                run = measure(used, options.jobs, workers)
                best, least = max(best, run.jobs_per_second), min(least, run.cpu_us_per_job)
                samples(f"{workers} workers, jobs/s", [run.jobs_per_second])
                cpu = f"{run.cpu_us_per_job:.0f}", f"{run.broker_us_per_job:.0f}"
                rows.append((workers, f"{run.jobs_per_second:,.0f}", *cpu, f"{run.settles:.0f}"))
        loop = min(_loop_cpu_us(used, options.jobs) for _ in range(options.runs))
    table(("workers", "jobs/s", "workers' CPU µs a job", "Kafka's CPU µs a job", "transactions/s"), rows)
    print("every job has exactly one result for a read_committed reader")
    print(f"the blocking loop takes {loop:.1f} µs of CPU a job")
    verdict("jobs/s, the best run", best, GOAL, at_least=True)
    verdict("workers' CPU a job / the loop's, the least of the runs", least / loop, CPU_GOAL, at_least=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers to measure, one after the other"
    )
    parser.add_argument("--runs", type=int, default=2, help="number of runs for each number of workers")
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parsed(parser)


def measure(used: Kafka, jobs: int, workers: int) -> Measured:
    """Run once, in a new fleet."""
    kafka = new_fleet(used, PARTITIONS)
    values = [_job(number) for number in range(jobs)]
    with ExitStack() as stack:
        commands = [Command(kafka, "worker", "--engine", "echo", POSTBACK_REPLICA=f"w{n}") for n in range(workers)]
        for command in commands:
            stack.enter_context(command)
        wait_for(lambda: shared_evenly(kafka, "inference", workers), START_SECONDS)
        prefill(kafka, values)
        first: list[Sample] = wait_for(lambda: _begun(commands), START_SECONDS)
        broker_first = used.cpu_seconds()
        last, broker_last = wait_until_finished(kafka, used, commands, jobs)
    assert_exactly_once(answered_jobs(kafka), jobs)
    return _between(first, last, broker_last - broker_first)


def _loop_cpu_us(used: Kafka, jobs: int) -> float:
    """Return the blocking loop's CPU time for one of the same jobs, in microseconds."""
    kafka = new_fleet(used, PARTITIONS)
    prefill(kafka, map(_job, range(jobs)))
    return in_its_own_process(blocking_loop, with_results(Task(kafka, "loop", jobs))).cpu_us_per_job


def _job(number: int) -> bytes:
    prompt = f"What does the page say of case {number}? " + "Answer in one sentence and name the place. " * 4
    job = {"prompt": prompt, "callback_url": "http://127.0.0.1:9/hooks/answers", "custom_id": str(number)}
    return json.dumps(job).encode()


def _samples(commands: Sequence[Command]) -> list[Sample]:
    return [command.sample() for command in commands]


def _begun(commands: Sequence[Command]) -> list[Sample] | None:
    """Return the workers' samples if one of them has settled a record; else None."""
    samples = _samples(commands)
    return samples if any(sample[SETTLED] for sample in samples) else None


def wait_until_finished(
    kafka: KafkaSettings, used: Kafka, commands: Sequence[Command], jobs: int
) -> tuple[list[Sample], float]:
    """Wait for every job's result. Return the workers' samples and Kafka's CPU seconds when all jobs were settled.

    The count of settled records would not do, because a record may be settled without a result: a deferred job's record
    is settled when the job is written again behind other jobs. Raises RuntimeError if no record is settled for
    STILL_SECONDS while results are missing.
    """
    last: tuple[list[Sample], float] | None = None
    most, moved_at, answered = 0.0, time.monotonic(), 0
    while True:
        now = _samples(commands), used.cpu_seconds()
        settled = sum(sample[SETTLED] for sample in now[0])
        if last is None and sum(map(_done, now[0])) >= jobs:
            last = now
        if settled >= jobs:  # results are read only now, because reading takes CPU time from the workers
            answered = len(set(answered_jobs(kafka)))
        if answered >= jobs:
            return last or now
        if settled > most:
            most, moved_at = settled, time.monotonic()
        elif time.monotonic() - moved_at > STILL_SECONDS:
            raise RuntimeError(f"{jobs} jobs have {answered} results, and none came for {STILL_SECONDS:.0f} s")
        time.sleep(LOOK_SECONDS)


def answered_jobs(kafka: KafkaSettings) -> list[str]:
    """Return the custom_id of each committed result."""
    results = committed_records(kafka.client_config(), kafka.topics.results)
    return [str(read_result(message.value()).custom_id) for message in results]


def _done(sample: Sample) -> float:
    """Return the number of answered jobs. Deferrals are subtracted: each settles a record without a result."""
    return sample[SETTLED] - sample[DEFERRED]


def _between(first: Sequence[Sample], last: Sequence[Sample], broker_seconds: float) -> Measured:
    seconds = max(sample.at for sample in last) - min(sample.at for sample in first)
    jobs = sum(_done(end) - _done(start) for start, end in zip(first, last, strict=True))
    cpu = sum(end.cpu_seconds - start.cpu_seconds for start, end in zip(first, last, strict=True))
    settles = sum(
        end["postback_settles_total"] - start["postback_settles_total"] for start, end in zip(first, last, strict=True)
    )
    return Measured(jobs / seconds, cpu / jobs * 1e6, broker_seconds / jobs * 1e6, settles / seconds)


if __name__ == "__main__":
    main()
