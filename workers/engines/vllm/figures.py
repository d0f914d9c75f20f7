"""Takes vLLM's own counts after each step of the model: the running requests, and a few metrics.

vLLM's Prometheus logger has over a hundred metrics on the process's global registry, which the metrics page does not
serve. vLLM makes this logger unless a subclass replaces it; the subclass here runs none of the logger's code.
"""

from __future__ import annotations

from typing import Any

from telemetry.metrics import Metrics
from workers.engines.places import Places


def counted_llm(config: Any, usage: Any, arguments: Any, places: Places, metrics: Metrics | None) -> Any:
    """Return a new AsyncLLM of this configuration; its scheduler's counts go to `places`. Blocks during the load.

    With a stat logger, vLLM also measures each request in each step. These measurements cost CPU time, and only the
    metrics need them. The AsyncLLM does not read its `log_stats` before the first request, so the measurements can be
    turned off here.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_vllm_config(
        config,
        usage_context=usage,
        enable_log_requests=arguments.enable_log_requests,
        stat_loggers=[stat_logger(places, metrics)],
        disable_log_stats=arguments.disable_log_stats,
    )
    if arguments.disable_log_stats:
        llm.log_stats = llm.output_processor.log_stats = llm.output_processor.lora_states.log_stats = False
    return llm


def stat_logger(places: Places, metrics: Metrics | None) -> type[Any]:
    """Return the class for vLLM's `stat_loggers`. vLLM makes an object of the class for each loaded engine.

    Without `metrics`, only the places are counted. Imports vLLM.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class StatLogger(PrometheusStatLogger):
        """Reads each step's statistics. vLLM calls the methods on the event loop."""

        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
            """Prepare to count the steps of an engine's ranks.

            The base class is not called, because it would register metrics.
            """
            ranks = engine_indexes or [0]
            scheduler = vllm_config.scheduler_config
            places.loaded(scheduler.max_num_active_seqs or scheduler.max_num_seqs, ranks)
            # A pooling model counts texts, not requests, and answers in one step. So its counts tell nothing about
            # places.
            self._is_generating = vllm_config.model_config.runner_type != "pooling"
            self._figures = Figures(metrics, ranks) if metrics is not None else None

        def record(
            self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
        ) -> None:
            """Count one step of an engine; either kind of statistics may be None."""
            if scheduler_stats is not None and self._is_generating:
                places.counted(engine_idx, scheduler_stats.num_running_reqs, scheduler_stats.num_waiting_reqs)
            if self._figures is not None:
                self._figures.record(scheduler_stats, iteration_stats, engine_idx)

        def log_engine_initialized(self) -> None:
            """Do nothing. The base class would export the engine's configuration."""

        def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
            """Do nothing, because a worker's engine does not sleep."""

        def record_admission_rejection(self, reason: str) -> None:
            """Do nothing, because a worker does not bound vLLM's queue."""

    return StatLogger


class Figures:
    """Exports a few of vLLM's metrics on the worker's metrics page."""

    def __init__(self, metrics: Metrics, ranks: list[int]) -> None:
        """Set the gauges to 0, since a dead engine leaves its last values."""
        self._metrics = metrics
        self._tokens = metrics.engine_tokens.begin()
        self._prefix = metrics.engine_prefix_tokens.begin()
        for rank in ranks:
            self._show(rank, 0.0, 0, 0)

    def record(self, scheduler_stats: Any, iteration_stats: Any, rank: int) -> None:
        """Count one step of an engine; either kind of statistics may be None."""
        if iteration_stats is not None:
            self._tokens["prompt"].inc(iteration_stats.prompt_token_stats.computed)
            self._tokens["generation"].inc(iteration_stats.num_generation_tokens)
            self._metrics.engine_preemptions.inc(iteration_stats.num_preempted_reqs)
        if scheduler_stats is not None:
            cache = scheduler_stats.prefix_cache_stats
            self._prefix["hit"].inc(cache.hits)
            self._prefix["miss"].inc(cache.queries - cache.hits)
            waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
            self._show(rank, scheduler_stats.kv_cache_usage, scheduler_stats.num_running_reqs, waiting)

    def _show(self, rank: int, kv_usage: float, running: int, waiting: int) -> None:
        self._metrics.engine_kv_usage.labels(str(rank)).set(kv_usage)
        self._metrics.engine_requests.labels(str(rank), "running").set(running)
        self._metrics.engine_requests.labels(str(rank), "waiting").set(waiting)
