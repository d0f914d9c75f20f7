"""Compares the jobs a second before and after a worker is killed: `python -m bench.recovery`.

Real `postback worker --engine echo` processes answer a backlog of jobs that take four seconds each, from twelve
partitions. One process is killed with SIGKILL, and started again at once, as an orchestrator does. Each job counts at
the time of its result. *Oldest* jobs are each partition's first unanswered jobs at the kill, as many as may have been
running then. Until the oldest jobs are all answered, later jobs overtake them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice

from confluent_kafka import Message

from bench.end_to_end import SETTLED
from bench.fleet import START_SECONDS, Command, Kafka, assert_exactly_once, broker, new_fleet, prefill, wait_for
from bench.table import table, title, verdict
from devkit.committed import committed_records
from schemas.codec import read_result
from schemas.settings import KafkaSettings

GOAL = 0.8
PARTITIONS = 12
WINDOW = 1024
"""Largest number of jobs that a worker handles at once: the default of POSTBACK_WORKER__WINDOW_RECORDS."""
SPARE_SECONDS = 60.0
"""Seconds of work in the backlog beyond the measurement."""

Answered = list[tuple[int, float]]
"""Each result's job number, and the Unix seconds at which the result was written."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The rates of one run before and after the kill, and the delay of the oldest jobs."""

    before: float
    """Jobs a second before the kill."""
    after: float
    oldest_seconds: float | None
    """Seconds from the kill until the last of the oldest jobs was answered; None if one was unanswered at the end."""


def main() -> None:
    """Measure, and print the results."""
    options = _options()
    title(f"a worker killed among {options.workers}, jobs of {options.job_seconds:g} s, {PARTITIONS} partitions")
    with broker(options.bootstrap_servers) as used:
        runs = [_measure(used, options) for _ in range(options.runs)]
    rows = [
        (
            f"{run.before:,.0f}",
            f"{run.after:,.0f}",
            f"{run.after / run.before:.2f}",
            "later" if run.oldest_seconds is None else f"{run.oldest_seconds:.0f}",
        )
        for run in runs
    ]
    table(("jobs/s before", "jobs/s after", "ratio", "seconds until the oldest were answered"), rows)
    print("no job has two results for a read_committed reader")
    verdict("after / before, the worst run", min(run.after / run.before for run in runs), GOAL, at_least=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="number of processes; one of them is killed")
    parser.add_argument("--job-seconds", type=float, default=4.0)
    parser.add_argument("--before", type=float, default=30.0, help="measured seconds before the kill")
    parser.add_argument("--after", type=float, default=60.0, help="measured seconds after the kill")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parser.parse_args()


def _measure(used: Kafka, options: argparse.Namespace) -> Measured:
    kafka = new_fleet(used, PARTITIONS)
    seconds = options.before + options.after + SPARE_SECONDS
    prefill(kafka, map(_job, range(int(options.workers * WINDOW / options.job_seconds * seconds))))
    latency = str(options.job_seconds)

    def worker(number: int) -> Command:
        variables = {"POSTBACK_REPLICA": f"w{number}", "POSTBACK_ENGINE__ECHO__LATENCY_SECONDS": latency}
        return stack.enter_context(Command(kafka, "worker", "--engine", "echo", **variables))

    with ExitStack() as stack:
        workers = [worker(number) for number in range(options.workers)]
        wait_for(lambda: all(one.sample()[SETTLED] for one in workers), START_SECONDS)
        time.sleep(3 * options.job_seconds)  # every window is full by the end of this pause
        time.sleep(options.before)
        workers[0].kill()
        killed_at = time.time()
        worker(0)
        time.sleep(max(0.0, killed_at + options.after - time.time()))
        for one in workers[1:]:
            one.sample()  # raises if another worker has ended
        answered = _answered(kafka)
    assert_exactly_once((str(job) for job, _ in answered), len({job for job, _ in answered}))
    return measured(answered, killed_at, options.before, options.after, options.workers * WINDOW)


def _job(number: int) -> bytes:
    return json.dumps({"prompt": "What is it?", "custom_id": str(number)}).encode()


def _answered(kafka: KafkaSettings) -> Answered:
    return [(_number(message), message.timestamp()[1] / 1000) for message in _results(kafka)]


def _results(kafka: KafkaSettings) -> Iterable[Message]:
    return committed_records(kafka.client_config(), kafka.topics.results)


def _number(message: Message) -> int:
    return int(str(read_result(message.value() or b"").custom_id))


def measured(answered: Answered, killed_at: float, before: float, after: float, under_way: int) -> Measured:
    """Return the rates and the oldest jobs' delay. Job n is in partition n modulo PARTITIONS, in order."""
    early = sum(killed_at - before <= at < killed_at for _, at in answered)
    late = sum(killed_at <= at < killed_at + after for _, at in answered)
    when = dict(answered)
    oldest = [when.get(job) for job in _oldest(when, killed_at, under_way)]
    done = [at - killed_at for at in oldest if at is not None]
    return Measured(early / before, late / after, max(done, default=0.0) if len(done) == len(oldest) else None)


def _oldest(when: Mapping[int, float], killed_at: float, under_way: int) -> Iterator[int]:
    """Yield each partition's first jobs that were unanswered at the kill, `under_way` jobs in all."""
    for partition in range(PARTITIONS):
        unanswered = (job for job in count(partition, PARTITIONS) if when.get(job, killed_at) >= killed_at)
        yield from islice(unanswered, under_way // PARTITIONS)


if __name__ == "__main__":
    main()
