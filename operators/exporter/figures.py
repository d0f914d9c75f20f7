"""The figures of one reading, as the exporter publishes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """The waiting jobs of one class of a pool's lanes."""

    name: str
    """The class: `default`, `bulk` or `spare`."""
    jobs: int
    oldest_job_seconds: float
    """The same measure as in `PoolFigures`, for this class."""
    tightest_deadline_seconds: float | None
    """The same measure as in `PoolFigures`, for this class."""


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """One pool of workers: those of the whole fleet's lanes, or of one engine's lanes."""

    lane: str | None
    """The engine's name; None for the lanes of the whole fleet."""
    jobs: int
    oldest_job_seconds: float
    """Age of the oldest waiting job in seconds; 0 if no job waits."""
    tightest_deadline_seconds: float | None
    """Seconds until the first deadline of a waiting job, negative if that deadline has passed; None if no deadline is
    known."""
    workers: int
    """Workers that announced themselves within three minutes and have not withdrawn."""
    jobs_per_second: float
    """Jobs that one worker answers in a second."""
    answer_seconds: float
    """The 99th percentile of the answers' times; 0 before a worker has announced one."""
    wanted_replicas: int
    """Number of workers that are needed to answer all waiting jobs before their deadlines."""
    classes: tuple[ClassFigures, ...] = ()
    """The pool's waiting jobs by class; a class without a topic is absent."""


@dataclass(frozen=True, slots=True)
class FleetFigures:
    """All figures of one reading."""

    at: float
    """Time of the reading, Unix seconds."""
    waiting: Mapping[str, int]
    """For each topic (lanes, results, events and tiers), the number of records that are not done."""
    callbacks: int
    """The number of callbacks that are not delivered, including those that wait for their next attempt. Results
    without a callback do not count; of records that were not read yet, the share that has a callback is estimated."""
    fresh_callbacks: int
    """The number of `callbacks` without an attempt so far. Delivery can make their first attempts now."""
    dead_letters: int
    disabled_endpoints: int
    models: Mapping[str, int]
    """The number of workers that have each model."""
    pools: tuple[PoolFigures, ...]
    """All pools; the whole fleet's pool comes first."""
    thin_partitions: int = 0
    """Number of partitions with a copy on a broker that is away or behind."""
    clock_skew: Mapping[str, float] = field(default_factory=dict)
    """The largest number of seconds by which any worker's clock is `ahead` of the brokers' clocks or `behind` them."""

    def document(self, *, stale: bool) -> dict[str, Any]:
        """Return the JSON of `/backlog`. The top-level `wanted_replicas` is for the whole fleet's lanes."""
        deadlines = [
            pool.tightest_deadline_seconds for pool in self.pools if pool.tightest_deadline_seconds is not None
        ]
        return {
            "jobs": sum(pool.jobs for pool in self.pools),
            "callbacks": self.callbacks,
            "fresh_callbacks": self.fresh_callbacks,
            "oldest_job_seconds": max((pool.oldest_job_seconds for pool in self.pools), default=0.0),
            "tightest_deadline_seconds": min(deadlines, default=None),
            "wanted_replicas": self.pools[0].wanted_replicas if self.pools else 0,
            "dead_letters": self.dead_letters,
            "disabled_endpoints": self.disabled_endpoints,
            "workers": sum(pool.workers for pool in self.pools),
            "models": dict(self.models),
            "lanes": [asdict(pool) for pool in self.pools],
            "topics": dict(self.waiting),
            "read_at": self.at,
            "stale": stale,
        }
