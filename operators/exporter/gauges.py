"""Figures as Prometheus gauges."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Gauge

from operators.exporter.figures import FleetFigures
from telemetry.metrics import Metrics

WHOLE_FLEET = ""
"""The value of the label `lane` for workers that read the whole fleet's lanes."""


class FigureGauges:
    """Writes figures into the gauges of the exporter.

    Until the first figures arrive, only `stale` has a value, which is 1.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._labels: dict[Gauge, set[tuple[str, ...]]] = {}
        self.stale(True)

    def show(self, figures: FleetFigures) -> None:
        """Set the gauges to new figures, and remove each series that has no figure now."""
        metrics = self._metrics
        pools = {pool.lane or WHOLE_FLEET: pool for pool in figures.pools}
        self._set(metrics.waiting_records, figures.waiting)
        self._set(metrics.oldest_job_seconds, {lane: pool.oldest_job_seconds for lane, pool in pools.items()})
        self._set(
            metrics.tightest_deadline_seconds,
            {
                lane: pool.tightest_deadline_seconds
                for lane, pool in pools.items()
                if pool.tightest_deadline_seconds is not None
            },
        )
        by_class = {(lane, each.name): each for lane, pool in pools.items() for each in pool.classes}
        self._set_all(metrics.class_oldest_job_seconds, {at: each.oldest_job_seconds for at, each in by_class.items()})
        self._set(metrics.waiting_jobs, {lane: pool.jobs for lane, pool in pools.items()})
        self._set(metrics.workers, {lane: pool.workers for lane, pool in pools.items()})
        self._set(metrics.worker_jobs_per_second, {lane: pool.jobs_per_second for lane, pool in pools.items()})
        self._set(metrics.worker_answer_seconds, {lane: pool.answer_seconds for lane, pool in pools.items()})
        self._set(metrics.wanted_replicas, {lane: pool.wanted_replicas for lane, pool in pools.items()})
        self._set(metrics.model_workers, figures.models)
        self._set(metrics.worker_clock_skew, figures.clock_skew)
        metrics.waiting_callbacks.set(figures.callbacks)
        metrics.thin_partitions.set(figures.thin_partitions)
        metrics.open_dead_letters.set(figures.dead_letters)
        metrics.disabled_endpoints.set(figures.disabled_endpoints)
        metrics.figures_timestamp_seconds.set(figures.at)
        self.stale(False)

    def stale(self, is_stale: bool) -> None:
        """Set the gauge that tells whether the figures are stale."""
        self._metrics.figures_stale.set(is_stale)

    def _set(self, gauge: Gauge, values: Mapping[str, float]) -> None:
        self._set_all(gauge, {(label,): value for label, value in values.items()})

    def _set_all(self, gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
        # Set new values before removing old series, so that a scrape in between misses no series.
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        for labels in self._labels.get(gauge, set()) - values.keys():
            gauge.remove(*labels)
        self._labels[gauge] = set(values)
