"""Compares the stage with the blocking loop that it replaces: `python -m bench.stage`.

Both sides validate each job and answer at once, from the same topic, with the same client settings. The sides run in
turn, each in a separate process. The clock runs from the first commit to the last. The loop takes a batch, handles it
and commits it, one step after the other. So the loop's rate is the ceiling for one process with this client.

Further runs share the stage between 1, 100 and 10,000 tenants, whose number should not matter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import uvloop
from confluent_kafka import Consumer, KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from bench.committed import committed_records
from bench.fleet import assert_exactly_once, broker, new_fleet, prefill, value_of
from bench.result import parsed, samples, table, title, verdict
from schemas.codec import Origin, read_job
from schemas.settings import KafkaSettings
from telemetry.clock import SystemClock
from telemetry.metrics import Metrics
from workers.stage.build import group_stage
from workers.stage.producer import producer_config
from workers.stage.record import Failure, Output, Record
from workers.stage.settings import StageSettings
from workers.stage.sharing import Place
from workers.stage.window import Limits
from workers.system.tuning import collect_garbage_seldom

TARGET = 0.7
TENANTS = (1, 100, 10_000)
TENANTS_TARGET = 0.8
PARTITIONS = 4
LOOK_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Task:
    """The work of one process."""

    kafka: KafkaSettings
    name: str
    jobs: int
    window: int = 2000
    """The number of records that the stage handles at once."""
    batch: int = 1000
    """The number of records in one transaction of the loop."""
    tenants: int = 0
    """The number of tenants that share the stage; 0 without sharing."""

    @property
    def results(self) -> str:
        """The topic for this run's results."""
        return f"{self.kafka.topic_prefix}results.{self.name}"


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one side's run, from its first commit to its last."""

    jobs_per_second: float
    cpu_us_per_job: float


@dataclass(slots=True)
class Meter:
    """A clock that runs from the first commit until all jobs are committed."""

    jobs: int
    first: tuple[int, float, float] | None = None
    measured: Measured | None = None

    def committed(self, count: int) -> bool:
        """Note that `count` jobs are committed now; return True if these are all jobs."""
        now, cpu = time.perf_counter(), time.process_time()
        if self.first is None and count:
            self.first = (count, now, cpu)
        if self.first is None or count < self.jobs:
            return False
        jobs = count - self.first[0]
        self.measured = Measured(jobs / (now - self.first[1]), (cpu - self.first[2]) / jobs * 1e6)
        return True


def main() -> None:
    """Run both sides in turn, and print the results."""
    options = _options()
    title(f"The stage and the blocking loop: {options.jobs:,} jobs of {PARTITIONS} partitions, {options.pairs} pairs")
    with broker(options.bootstrap_servers) as used:
        kafka = new_fleet(used, PARTITIONS)
        prefill(kafka, (_job(number) for number in range(options.jobs)), max(TENANTS))
        rows: list[tuple[Measured, Measured]] = []
        shared: dict[int, list[Measured]] = {tenants: [] for tenants in TENANTS}
        for pair in range(options.pairs):
            loop = in_its_own_process(blocking_loop, _task(options, kafka, f"loop-{pair}"))
            stage = in_its_own_process(stage_run, _task(options, kafka, f"stage-{pair}"))
            rows.append((loop, stage))
            for tenants, runs in shared.items():
                name = f"tenants-{tenants}-{pair}"
                runs.append(in_its_own_process(stage_run, replace(_task(options, kafka, name), tenants=tenants)))
    _report(rows)
    _report_tenants(shared)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--window", type=int, default=2000, help="number of records that the stage handles at once")
    parser.add_argument("--batch", type=int, default=1000, help="number of records in one transaction of the loop")
    parser.add_argument("--bootstrap-servers", help="a Kafka to use instead of a fresh one")
    return parsed(parser)


def _job(number: int) -> bytes:
    prompt = f"What does the page say of case {number}? " + "Answer in one sentence and name the place. " * 4
    return json.dumps({"prompt": prompt, "max_tokens": 64, "custom_id": str(number)}).encode()


def _task(options: argparse.Namespace, kafka: KafkaSettings, name: str) -> Task:
    return with_results(Task(kafka, name, options.jobs, options.window, options.batch))


def with_results(task: Task) -> Task:
    """Make the topic for the task's results."""
    admin = AdminClient(task.kafka.client_config())
    admin.create_topics([NewTopic(task.results, task.kafka.partitions, 1)])[task.results].result(20)
    return task


def _as_a_worker(side: Callable[[Task], Measured], task: Task) -> Measured:
    """Run a side in an interpreter that is set up like a worker's."""
    collect_garbage_seldom()
    return side(task)


def in_its_own_process(side: Callable[[Task], Measured], task: Task) -> Measured:
    """Run a side in a new process, and check that it gave exactly one result for each job."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        measured = processes.submit(_as_a_worker, side, task).result()
    results = committed_records(task.kafka.client_config(), task.results)
    assert_exactly_once((str(message.key()) for message in results), task.jobs)
    return measured


def _report(rows: Sequence[tuple[Measured, Measured]]) -> None:
    ratios = [stage.jobs_per_second / loop.jobs_per_second for loop, stage in rows]
    lines = [_line("blocking loop", [loop for loop, _ in rows]), _line("stage", [stage for _, stage in rows])]
    table(("", "jobs/s (median)", "range", "CPU µs a job (median)"), lines)
    samples("blocking loop, jobs/s", [loop.jobs_per_second for loop, _ in rows])
    samples("stage, jobs/s", [stage.jobs_per_second for _, stage in rows])
    print("stage / loop in each pair:", ", ".join(f"{ratio:.2f}" for ratio in ratios))
    verdict("stage / loop, median of the pairs", statistics.median(ratios), TARGET, at_least=True)


def _report_tenants(shared: Mapping[int, Sequence[Measured]]) -> None:
    lines = [_line(f"{tenants:,} tenants", runs) for tenants, runs in shared.items()]
    table(("", "jobs/s (median)", "range", "CPU µs a job (median)"), lines)
    rates = [statistics.median(run.jobs_per_second for run in runs) for runs in shared.values()]
    verdict(
        "jobs/s with the slowest number of tenants / the fastest",
        min(rates) / max(rates),
        TENANTS_TARGET,
        at_least=True,
    )


def _line(name: str, runs: Sequence[Measured]) -> tuple[str, str, str, str]:
    rates = [run.jobs_per_second for run in runs]
    cpu = statistics.median(run.cpu_us_per_job for run in runs)
    return name, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}-{max(rates):,.0f}", f"{cpu:.1f}"


# -- the two sides, each in a process of its own -----------------------------------------------------------------


def blocking_loop(task: Task) -> Measured:
    """Consume, validate, produce and commit one batch after another."""
    group = f"{task.kafka.topic_prefix}{task.name}"
    consumer = Consumer(_loop_consumer_config(task, group))
    producer = Producer(producer_config(task.kafka.client_config(), f"{group}.only"))
    producer.init_transactions(30)
    consumer.subscribe([task.kafka.topics.requests()])
    meter, done = Meter(task.jobs), 0
    while not meter.committed(done):
        messages = [message for message in consumer.consume(task.batch, 0.05) if _usable(message)]
        if not messages:
            continue
        producer.begin_transaction()
        for message in messages:
            partition = message.partition() or 0
            value, key = _answer(message.topic(), partition, message.offset(), message.value(), message.timestamp()[1])
            producer.produce(task.results, value, key, partition=partition)
        positions = consumer.position(consumer.assignment())
        producer.send_offsets_to_transaction(positions, consumer.consumer_group_metadata(), 30)
        producer.commit_transaction(30)
        done += len(messages)
    consumer.close()
    return _complete(meter)


def stage_run(task: Task) -> Measured:
    """Run the stage as a worker does."""
    return uvloop.run(_stage(task))


async def _stage(task: Task) -> Measured:
    metrics = Metrics()
    settings = StageSettings(task.name, limits=Limits(records=task.window))
    topics = [task.kafka.topics.requests()]
    handler = _Answering(task.results)
    sharing = _Tenants(task.tenants, handler) if task.tenants else None
    stage = group_stage(settings, task.kafka, topics, "only", handler, SystemClock(), metrics, sharing=sharing)
    running, meter = asyncio.create_task(stage.run()), Meter(task.jobs)
    while not meter.committed(int(value_of(metrics, "postback_settled_records_total"))):
        if running.done():
            break
        await asyncio.sleep(LOOK_SECONDS)
    stage.stop()
    await running
    return _complete(meter)


class _Tenants:
    """Implements the stage's `Sharing`."""

    later_share = 0.1

    def __init__(self, tenants: int, handler: _Answering) -> None:
        self._tenants = tenants
        self._handler = handler

    def assess(self, record: Record) -> None:
        record.party = b"%d" % (int((record.headers or [("", b"0")])[0][1] or 0) % self._tenants)
        record.cost, record.urgency = float(len(record.value)), record.timestamp_ms

    def place(self, topic: str) -> Place:
        return Place.FIRST

    def defer(self, record: Record) -> Sequence[Output]:
        """Answer at once: if fetching is much faster than answering, a full queue of many tenants defers records."""
        return self._handler.answer(record)


class _Answering:
    """Implements the stage's `Handler`."""

    def __init__(self, results: str) -> None:
        self._results = results

    async def handle(self, record: Record) -> Sequence[Output]:
        return self.answer(record)

    def answer(self, record: Record) -> Sequence[Output]:
        """Return the result of a job."""
        value, key = _answer(record.topic, record.partition, record.offset, record.value, record.timestamp_ms)
        return [Output(self._results, value, key)]

    def give_up(self, record: Record, failure: Failure) -> Sequence[Output]:
        raise RuntimeError(failure.message)


def _answer(
    topic: str | None, partition: int, offset: int | None, value: bytes | None, timestamp_ms: int
) -> tuple[bytes | None, bytes]:
    """Do the work that both sides share: validate the job, find its identity, and answer."""
    received = read_job(value, None, Origin(str(topic), partition, offset or 0), timestamp_ms)
    return value, received.job_id.encode()


def _loop_consumer_config(task: Task, group: str) -> dict[str, object]:
    """Return the consumer's settings, as in `workers.stage.source.GroupSource`."""
    return {
        "fetch.wait.max.ms": 100,
        "fetch.queue.backoff.ms": 2,
        "queued.min.messages": 2 * task.window,
        "queued.max.messages.kbytes": 16_384,
        **task.kafka.client_config(),
        "group.id": group,
        "group.protocol": "consumer",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "max.poll.interval.ms": 900_000,
    }


def _usable(message: Message) -> bool:
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise RuntimeError(error.str())
    return error is None


def _complete(meter: Meter) -> Measured:
    if meter.measured is None:
        raise RuntimeError("the run ended before every job was committed")
    return meter.measured


if __name__ == "__main__":
    main()
