"""Exports a few of vLLM's own metrics on the worker's metrics page, after each step of the model.

vLLM's Prometheus logger has over a hundred metrics on the process's global registry, which the metrics page does not
serve. vLLM makes this logger unless a subclass replaces it; the subclass here runs none of the logger's code.
"""

from __future__ import annotations

from typing import Any

from telemetry.metrics import Metrics


def figures(metrics: Metrics) -> type[Any]:
    """Return the class for vLLM's `stat_loggers`. vLLM makes an object of the class for each loaded engine.

    Imports vLLM.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    tokens = {kind: metrics.engine_tokens.labels(kind) for kind in ("prompt", "generation")}
    prefix = {result: metrics.engine_prefix_tokens.labels(result) for result in ("hit", "miss")}

    class Figures(PrometheusStatLogger):
        """Counts each step's statistics. vLLM calls the methods on the event loop."""

        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
            """Set the gauges to 0, since a dead engine leaves its last values.

            The base class is not called: it would register metrics.
            """
            for rank in engine_indexes or [0]:
                self._show(rank, 0.0, 0, 0)

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            """Count one step of an engine; either kind of statistics may be None."""
            if iteration_stats is not None:
                tokens["prompt"].inc(iteration_stats.prompt_token_stats.computed)
                tokens["generation"].inc(iteration_stats.num_generation_tokens)
                metrics.engine_preemptions.inc(iteration_stats.num_preempted_reqs)
            if scheduler_stats is not None:
                cache = scheduler_stats.prefix_cache_stats
                prefix["hit"].inc(cache.hits)
                prefix["miss"].inc(cache.queries - cache.hits)
                waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
                self._show(engine_idx, scheduler_stats.kv_cache_usage, scheduler_stats.num_running_reqs, waiting)

        def _show(self, rank: int, kv_usage: float, running: int, waiting: int) -> None:
            metrics.engine_kv_usage.labels(str(rank)).set(kv_usage)
            metrics.engine_requests.labels(str(rank), "running").set(running)
            metrics.engine_requests.labels(str(rank), "waiting").set(waiting)

        def log_engine_initialized(self) -> None:
            """Do nothing. The base class would export the engine's configuration."""

        def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
            """Do nothing: a worker's engine does not sleep."""

        def record_admission_rejection(self, reason: str) -> None:
            """Do nothing: a worker does not bound vLLM's queue."""

    return Figures
