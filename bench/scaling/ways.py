"""The ways of scaling that are compared."""

from __future__ import annotations

import math

from bench.scaling.cluster import PARTITIONS, START_SECONDS, Sight, Wish
from cli.operations.exporter.replicas import (
    ExporterSettings,
    Hysteresis,
    Throughput,
    answer_seconds,
    wanted_replicas,
)


def by_lag(records: int) -> Wish:
    """Want one worker for this many records of Kafka's lag, as KEDA's scaler for Kafka does."""
    return lambda sight: math.ceil(sight.kafka_lag / records)


def by_deadlines(*, measured: bool = True) -> Wish:
    """Want the number of workers that the exporter computes, with the exporter's own code and settings.

    The settings have their defaults, unless `POSTBACK_EXPORTER__…` is set. The least and most workers and a worker's
    start time are those of the simulated cluster. A worker really answers 0.4 jobs/s in most traces, and not the
    assumed 1. Without `measured`, the answers' times are left out of the margin before the deadlines.
    """
    bounds = {"min_replicas": 0, "max_replicas": PARTITIONS, "start_seconds": START_SECONDS}
    settings = ExporterSettings().model_copy(update=bounds)
    throughput = Throughput(settings.jobs_per_second)
    answer_time = 0.0
    hysteresis = Hysteresis(settings.down_seconds)

    def wish(sight: Sight) -> int:
        nonlocal answer_time
        jobs = sum(lane.jobs for lane in sight.lanes)
        throughput.observe(sight.at, sight.done, jobs, sight.workers)
        answer_time = answer_seconds(answer_time, sight.answers if measured else ())
        wanted = wanted_replicas(sight.lanes, throughput.jobs_per_second, settings, answer_time)
        return hysteresis.follow(sight.at, wanted)

    return wish
