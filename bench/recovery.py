"""Compares the jobs a second before and after a worker is killed: `python -m bench.recovery`.

Real `postback worker --engine echo` processes answer a backlog of jobs that take four seconds each, from twelve
partitions. One process is killed with SIGKILL, and started again at once, as an orchestrator does. Each job counts at
the time of its result. *Oldest* jobs are each partition's first unanswered jobs at the kill, as many as may have been
running then. Until the oldest jobs are all answered, later jobs overtake them.

A further run measures a *killer*: one job among 3,000 whose engine dies each time. It may cost the restarts of the
engine, and two seconds. With `--only-killer`, nothing else is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice

from confluent_kafka import Message

from bench.committed import committed_records
from bench.end_to_end import SETTLED
from bench.fleet import (
    START_SECONDS,
    Command,
    Kafka,
    assert_exactly_once,
    broker,
    new_fleet,
    prefill,
    value_of,
    wait_for,
)
from bench.result import parsed, samples, table, title, verdict
from schemas.codec import read_result
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.stage.build import group_stage
from workers.stage.record import Failure, HandlerCrashed, Output, Record
from workers.stage.settings import StageSettings
from workers.stage.window import Limits

GOAL = 0.8
PARTITIONS = 12
WINDOW = 1024
"""Largest number of jobs that a worker handles at once: the default of POSTBACK_WORKER__WINDOW_RECORDS."""
SPARE_SECONDS = 60.0
"""Seconds of work in the backlog beyond the measurement."""

KILLER_JOBS = 3_000
KILLER = 600
"""The number of the job that kills: about a thousand jobs run beside it, and most of them are tried after it."""
KILLER_JOB_SECONDS = 0.01
RESTART_SECONDS = 0.5
KILLER_GOAL_SECONDS = 2.0
LOOK_SECONDS = 0.01

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
        runs = [] if options.only_killer else [_measure(used, options) for _ in range(options.runs)]
        usual, killed = (asyncio.run(_with_killer(used, killer)) for killer in (None, KILLER))
    if runs:
        _report(runs)
    _report_killer(usual, killed)


def _report(runs: Sequence[Measured]) -> None:
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
    samples("after / before", [run.after / run.before for run in runs])
    verdict("after / before, the worst run", min(run.after / run.before for run in runs), GOAL, at_least=True)


def _report_killer(usual: tuple[float, int], killed: tuple[float, int]) -> None:
    (without, _), (seconds, restarts) = usual, killed
    table(
        ("jobs", "seconds without a killer", "seconds with one", f"restarts of {RESTART_SECONDS:g} s"),
        [(f"{KILLER_JOBS:,}", f"{without:.2f}", f"{seconds:.2f}", str(restarts))],
    )
    cost = seconds - without - restarts * RESTART_SECONDS
    verdict("seconds that one killer costs beside its restarts", cost, KILLER_GOAL_SECONDS, at_least=False)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="number of processes; one of them is killed")
    parser.add_argument("--job-seconds", type=float, default=4.0)
    parser.add_argument("--before", type=float, default=30.0, help="measured seconds before the kill")
    parser.add_argument("--after", type=float, default=60.0, help="measured seconds after the kill")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only-killer", action="store_true")
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parsed(parser)


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


class _Dying:
    """Implements the stage's `Handler` with an engine that dies at one job, and starts again."""

    def __init__(self, results: str, killer: int | None) -> None:
        self._results = results
        self._killer = killer
        self._engine = asyncio.Event()
        """Set when the present engine dies."""
        self._ready = asyncio.Event()
        self._ready.set()
        self.restarts = 0

    async def handle(self, record: Record) -> Sequence[Output]:
        await self._ready.wait()
        engine = self._engine
        if json.loads(record.value)["custom_id"] == str(self._killer):
            asyncio.get_running_loop().call_later(KILLER_JOB_SECONDS / 2, self._die, engine)
        try:
            async with asyncio.timeout(KILLER_JOB_SECONDS):
                await engine.wait()
        except TimeoutError:
            return [Output(self._results, record.value)]
        raise HandlerCrashed

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        return [Output(self._results, record.value)]

    def _die(self, engine: asyncio.Event) -> None:
        engine.set()
        self._engine = asyncio.Event()
        self.restarts += 1
        self._ready.clear()
        asyncio.get_running_loop().call_later(RESTART_SECONDS, self._ready.set)


async def _with_killer(used: Kafka, killer: int | None) -> tuple[float, int]:
    """Return the seconds in which a stage settles KILLER_JOBS jobs, and the number of restarts of its engine."""
    kafka = await asyncio.to_thread(new_fleet, used, PARTITIONS)
    await asyncio.to_thread(prefill, kafka, map(_job, range(KILLER_JOBS)))
    handler, metrics = _Dying(kafka.topics.results, killer), Metrics()
    settings = StageSettings("killer", limits=Limits(records=1024))
    stage = group_stage(settings, kafka, [kafka.topics.requests()], "only", handler, SystemClock(), metrics)
    running, began = asyncio.create_task(stage.run()), 0.0
    while (settled := value_of(metrics, "postback_settled_records_total")) < KILLER_JOBS and not running.done():
        began = began or (time.perf_counter() if settled else 0.0)
        await asyncio.sleep(LOOK_SECONDS)
    seconds = time.perf_counter() - began
    stage.stop()
    await running
    return seconds, handler.restarts


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
